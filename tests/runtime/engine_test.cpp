// SPDX-License-Identifier: Apache-2.0
// What an Engine refuses, and what it does when memory ends.
#include "espalier/engine.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <oneapi/dnnl/dnnl_common.hpp>

#include <fstream>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "espalier/session.h"
#include "runtime/out_of_memory.h"
#include "tests/runtime/derived_checkpoint.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/sanitized.h"

namespace espalier {
namespace {

using test::DerivedCheckpoint;
using test::expect_says;
using test::message_of;

Engine load(const EngineOptions& options = {}) {
  return Engine::load(test::tiny_llava_folder(), options);
}

Request asks(int examples, int64_t new_tokens = 2) {
  Request request;
  request.prompt = test::in_context_prompt(examples);
  request.options.max_new_tokens = new_tokens;
  request.options.greedy = true;
  return request;
}

TEST(Engine, OneThatWasMovedFromSaysSo) {
  Engine engine = load(), other = load();
  const std::vector<int32_t> before = engine.generate(asks(1)).token_ids;
  Engine moved = std::move(engine);
  // NOLINTBEGIN(bugprone-use-after-move)
  for (const std::string& message :
       {message_of<Error>([&] { engine.generate(asks(1)); }),
        message_of<Error>([&] { engine.count_tokens(asks(1).prompt); }), message_of<Error>([&] { engine.tokenizer(); }),
        message_of<Error>([&] { engine.folder(); }), message_of<Error>([&] { engine.look_at(test::picture(4, 4, 1)); }),
        message_of<Error>([&] { Session(engine).ask("?"); }), message_of<Error>([&] { Scheduler scheduler(engine); })})
    expect_says(message, {"moved from"});
  engine = std::move(other);
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_EQ(engine.generate(asks(1)).token_ids, before);
  EXPECT_EQ(moved.generate(asks(1)).token_ids, before);
}

TEST(Engine, RefusesNumbersOfThreadsThatNoMachineHas) {
  for (const int threads : {-3, 1025, std::numeric_limits<int>::max()})
    expect_says(message_of<Error>([&] { load({.threads = threads}); }), {"threads", std::to_string(threads).c_str()});
}

TEST(Engine, LooksAtNoPictureThatLacksPixels) {
  const auto short_one = std::make_shared<const Image>(Image{10, 10, std::vector<uint8_t>(100)});
  expect_says(message_of<Error>([&, engine = load()] { engine.look_at(short_one); }),
              {"look_at", "300 bytes", "got 100"});
}

// ---- chat templates ----

TEST(Engine, TakesAChatTemplateForTextAlone) {
  DerivedCheckpoint checkpoint;
  checkpoint.write();
  std::ofstream(checkpoint.path() / "text.jinja")
      << "{% for m in messages %}{{ m.role | upper }}: {{ m.content }} {% endfor %}ASSISTANT:";
  const EngineOptions options{.dtype = ComputeDtype::kFloat32, .chat_template = checkpoint.path() / "text.jinja"};
  const Engine engine = Engine::load(checkpoint.path(), options);
  const Chat chat{{{"user", {ImagePart{.image = test::picture(56, 56, 3)}, TextPart{"What is this?"}}}}};
  EXPECT_EQ(engine.generate({.prompt = chat, .options = {.max_new_tokens = 0}}).prompt,
            "USER: <image>\nWhat is this? ASSISTANT:");
  expect_says(message_of<Error>([&] { Engine::load(checkpoint.path(), {.chat_template = "/no/such.jinja"}); }),
              {"/no/such.jinja: no such file"});
}

// ---- memory ----

TEST(OutOfMemory, IsRecognisedWhoeverSaysIt) {
  EXPECT_TRUE(is_out_of_memory(std::bad_alloc()));
  EXPECT_TRUE(is_out_of_memory(OutOfMemory()));
  EXPECT_TRUE(is_out_of_memory(std::system_error(EAGAIN, std::generic_category())));
  const char* descriptor = "could not create a primitive descriptor for the matmul primitive";
  EXPECT_TRUE(is_out_of_memory(dnnl::error(dnnl_out_of_memory, descriptor)));
  EXPECT_TRUE(is_out_of_memory(dnnl::error(dnnl_runtime_error, "could not create a primitive")));
  EXPECT_TRUE(is_out_of_memory(dnnl::error(dnnl_invalid_arguments, "could not create an engine")));
  EXPECT_FALSE(is_out_of_memory(dnnl::error(dnnl_unimplemented, descriptor)));
  EXPECT_FALSE(is_out_of_memory(dnnl::error(dnnl_runtime_error, "could not execute a primitive")));
  EXPECT_FALSE(is_out_of_memory(std::runtime_error("x")));
  EXPECT_FALSE(is_out_of_memory(Error("out of range")));
  try {
    at::empty({int64_t{1} << 50});
    ADD_FAILURE() << "there were 4 PB";
  } catch (const std::exception& error) {
    EXPECT_TRUE(is_out_of_memory(error)) << error.what();
    EXPECT_THROW(in_our_words([&]() -> int { throw; }), OutOfMemory);
  }
  EXPECT_THROW(in_our_words([]() -> int { throw Error("x"); }), Error);
}

// The address space of the process as it is now, and `more` bytes.
class LimitedMemory {
 public:
  explicit LimitedMemory(rlim_t more) {
    ::getrlimit(RLIMIT_AS, &before_);
    size_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    rlimit limit = before_;
    limit.rlim_cur = pages * 4096 + more;
    ::setrlimit(RLIMIT_AS, &limit);
  }
  ~LimitedMemory() { ::setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_{};
};

TEST(OutOfMemory, EndsTheRequestAndTheEngineAnswersTheNext) {
  if (test::kIsSanitized) GTEST_SKIP() << "sanitizers map more than any limit allows";
  for (const int threads : {1, 2}) {
    const Engine engine = load({.dtype = ComputeDtype::kFloat32, .threads = threads});
    const std::vector<int32_t> before = engine.generate(asks(2)).token_ids;
    RawPrompt long_text;
    for (int i = 0; i < 900; ++i) long_text.text += " red";
    Request text, pictures = asks(8, 1);
    text.prompt = long_text;
    text.options.max_new_tokens = 1;
    int failed = 0;
    for (const char* policy : {"none", "catp:keep_ratio=1/3", "sparsevlm:keep_ratio=1/2"})
      for (const int megabytes : {0, 1, 2, 4, 8, 16, 32})
        for (Request* large : {&text, &pictures}) {
          large->policy = policy;
          try {
            const LimitedMemory limit(static_cast<rlim_t>(megabytes) << 20);
            const std::vector<Request> many(12, *large);
            engine.generate(many);
          } catch (const OutOfMemory& error) {
            EXPECT_TRUE(std::string(error.what()).starts_with("out of memory"));
            ++failed;
          }
          EXPECT_EQ(engine.generate(asks(2)).token_ids, before) << megabytes << " MB, " << policy;
        }
    EXPECT_GT(failed, 0) << threads;
  }
}

}  // namespace
}  // namespace espalier
