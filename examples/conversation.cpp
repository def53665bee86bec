// SPDX-License-Identifier: Apache-2.0
// Two questions about one picture, at the same time from a scheduler and one after the other in a session.
//   conversation MODEL_FOLDER PICTURE QUESTION
#include <chrono>
#include <iostream>
#include <memory>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "espalier/session.h"

using namespace espalier;
using namespace std::chrono_literals;

int main(int argc, char** argv) try {
  if (argc != 4) return std::cerr << "usage: conversation MODEL_FOLDER PICTURE QUESTION\n", 2;
  const Engine engine = Engine::load(argv[1]);
  const ImagePart picture{.image = std::make_shared<const Image>(read_image(argv[2]))};

  Scheduler scheduler(engine);
  Request one{.prompt = in_context_chat({}, picture, argv[3]), .policy = "divprune:keep_ratio=1/2"};
  Request other{.prompt = in_context_chat({}, picture, argv[3]), .policy = "catp:keep_ratio=2/9"};
  one.options.max_new_tokens = other.options.max_new_tokens = 16;
  Ticket first = scheduler.submit(one), second = scheduler.submit(other);
  std::string piece;
  while (first.next(piece, 1min) == Ticket::Next::kText) std::cout << piece;
  std::cout << "\n" << second.result().text << "\n";

  Session session(engine, {.policy = "divprune:keep_ratio=1/2", .generation = {.max_new_tokens = 16}});
  session.ask({picture, TextPart{argv[3]}});
  session.ask(argv[3]);
  const Result third = session.ask(argv[3]);
  std::cout << third.text << "\n"
            << third.stats.reused_tokens << " of " << third.stats.prompt_tokens << " tokens known\n";
} catch (const Error& error) {
  return std::cerr << "conversation: " << error.what() << "\n", 2;
}
