// SPDX-License-Identifier: Apache-2.0
// A conversation in the terminal: a line is a turn, /image FILE puts a picture before the next one.
#include <unistd.h>
#include <CLI/App.hpp>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/prompt_options.h"
#include "cli/sampling_options.h"
#include "cli/standard_output.h"
#include "cli/stats_text.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "espalier/image.h"
#include "espalier/session.h"

namespace espalier::cli {

namespace {

struct ChatOptions {
  ModelOptions model;
  PromptOptions prompt;
  SessionOptions session;
  bool stats = false;
};

constexpr std::string_view kImage = "/image ";

// One line at a time; where it is a picture's, `turn` grows, else it is asked.
class Talk {
 public:
  Talk(Session& session, TerminalProgress& progress, bool shows_stats)
      : session_(session), progress_(progress), shows_stats_(shows_stats) {}

  void take(const std::string& line) {
    if (line.starts_with(kImage)) {
      ImagePart part;
      part.image = std::make_shared<const Image>(read_image(line.substr(kImage.size())));
      turn_.emplace_back(std::move(part));
      return;
    }
    std::vector<Part> turn = std::exchange(turn_, {});
    turn.emplace_back(TextPart{line});
    Callbacks callbacks = watch(progress_);
    callbacks.on_text = [this](size_t, std::string_view piece) {
      progress_.clear();
      print(piece);
      return Continue::kGo;
    };
    const Result result = session_.ask(std::move(turn), callbacks);
    progress_.clear();
    print("\n");
    if (shows_stats_) std::fputs(stats_text(result.stats).c_str(), stderr);
  }

 private:
  Session& session_;
  TerminalProgress& progress_;
  bool shows_stats_;
  std::vector<Part> turn_;
};

ExitStatus chat(const ChatOptions& options) {
  SessionOptions session_options = options.session;
  session_options.policy = options.prompt.policy;
  session_options.custom = read_policy(options.prompt.plugins, options.prompt.policy);
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  Session session(engine, session_options);
  Talk talk(session, progress, options.stats);
  const bool is_terminal = isatty(STDIN_FILENO) != 0;
  std::string line;
  for (;;) {
    if (is_terminal) std::fputs("> ", stderr);
    if (interrupted()) return kInterrupted;
    if (!std::getline(std::cin, line) || line == "/quit") return interrupted() ? kInterrupted : kDone;
    if (line.empty()) continue;
    try {
      talk.take(line);
    } catch (const Error& error) {  // the conversation is as it was; without a person at it, nobody would notice
      if (!is_terminal) throw;
      progress.clear();
      std::fprintf(stderr, "espalier: %s\n", error.what());
    }
  }
}

}  // namespace

Run add_chat(CLI::App& app) {
  const auto options = std::make_shared<ChatOptions>();
  options->session.generation.max_new_tokens = 256;
  add_model_options(app, options->model);
  add_policy_option(app, options->prompt);
  add_sampling_options(app, options->session.generation);
  app.add_option("--system", options->session.system, "What stands before the first turn")->type_name("TEXT");
  app.add_flag("--sticky", options->session.sticky,
               "Tokens of a picture that one turn dropped stay away; without it each question chooses anew");
  app.add_flag("--stats", options->stats, "Print tokens kept and reused, times and memory to stderr after each turn");
  app.footer(
      "A line is a turn; /image FILE puts a picture before the next one, /quit or the end of input ends.\n\n"
      "  espalier chat --model llava-1.5-7b-hf --policy catp:keep_ratio=2/9");
  return [options] { return chat(*options); };
}

}  // namespace espalier::cli
