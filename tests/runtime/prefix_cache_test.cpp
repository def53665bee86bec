// SPDX-License-Identifier: Apache-2.0
// Beginnings that are used again: for every policy of the table on every family, answers behind a cached prefix are
// those without it, and nothing is found that should not be.
#include "runtime/prefix_cache.h"

#include <ATen/TensorOperators.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <random>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "espalier/session.h"
#include "runtime/generate.h"
#include "runtime/schedule.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

constexpr const char* kFamilies[] = {"llava15", "llava_next_mistral", "llava_next_vicuna", "qwen25vl", "qwen2vl"};

ImagePart picture(int i) {
  constexpr std::pair<int, int> kSizes[] = {{112, 120}, {224, 48}, {56, 56}, {48, 224}};
  const auto [width, height] = kSizes[i % 4];
  return {.image = test::picture(width, height, static_cast<uint32_t>(30 + i))};
}

// Demonstration i, always the same.
Example demonstration(int i) {
  constexpr const char* kQuestions[] = {"What is the red cat doing?", "What colour is the kite?", "Where is the dog?"};
  return {.image = picture(i), .question = kQuestions[i % 3], .answer = i % 2 ? "sitting" : "near the wall"};
}

Chat prompt_of(const std::vector<int>& demonstrations, int query) {
  std::vector<Example> examples;
  for (const int i : demonstrations) examples.push_back(demonstration(i));
  return in_context_chat(examples, picture(7 + query),
                         "What is left of the tree number " + std::to_string(query) + "?");
}

struct Answered {
  Result result;
  at::Tensor logits;
};

std::string said_by(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

// Requests one after the other through one schedule with a prefix cache.
class Cached {
 public:
  explicit Cached(const LoadedModel& model, int64_t bytes = int64_t{1} << 30)
      : model_(model),
        schedule_(model, {.prefix_cache_bytes = bytes, .on_done = [this](std::unique_ptr<RequestRun> run) {
                            if (run->error) ADD_FAILURE() << said_by(run->error);
                            if (run->result) results_[run->index] = std::move(*run->result);
                          }}) {}

  Answered ask(const Request& request) { return std::move(ask_together({request})[0]); }

  std::vector<Answered> ask_together(const std::vector<Request>& requests) {
    const c10::InferenceMode no_gradients;
    std::vector<LogitsWatcher> watchers(requests.size());
    results_.assign(requests.size(), {});
    const auto call = std::make_shared<Call>(Callbacks());
    for (size_t i = 0; i < requests.size(); ++i)
      schedule_.admit(std::make_unique<RequestRun>(model_, requests[i], i, call,
                                                   RunExtras{.watcher = &watchers[i], .uses_prefixes = true}));
    while (!schedule_.is_idle()) schedule_.step();
    std::vector<Answered> answers;
    for (size_t i = 0; i < requests.size(); ++i) answers.push_back({std::move(results_[i]), watchers[i].logits});
    return answers;
  }

  PrefixCache::Counts counts() const { return schedule_.load().prefixes; }
  const KvArena& arena() const { return schedule_.arena(); }

 private:
  const LoadedModel& model_;
  std::vector<Result> results_;
  Schedule schedule_;
};

Answered alone(const LoadedModel& model, const Request& request) {
  LogitsWatcher watcher;
  Result result = generate(model, request, {}, {.watcher = &watcher});
  return {std::move(result), watcher.logits};
}

Request request_of(Prompt prompt, const std::string& policy, int64_t new_tokens = 4) {
  Request request;
  request.prompt = std::move(prompt);
  request.policy = policy;
  request.options.max_new_tokens = new_tokens;
  request.options.ignore_eos = true;
  request.options.greedy = true;
  request.trace = true;
  return request;
}

void expect_same(const Answered& cached, const Answered& whole) {
  EXPECT_EQ(cached.result.kept, whole.result.kept);
  ASSERT_EQ(cached.result.points.size(), whole.result.points.size());
  for (size_t i = 0; i < whole.result.points.size(); ++i) {
    SCOPED_TRACE(i);
    const PointTrace &a = cached.result.points[i], &b = whole.result.points[i];
    EXPECT_EQ(a.site, b.site);
    EXPECT_EQ(a.kept, b.kept);
    EXPECT_EQ(a.kept_per_head, b.kept_per_head);
    EXPECT_EQ(a.candidates, b.candidates);
    EXPECT_EQ(a.source, b.source);
    EXPECT_EQ(a.position_id, b.position_id);
    EXPECT_EQ(a.tokens_per_image, b.tokens_per_image);
  }
  const Stats &a = cached.result.stats, &b = whole.result.stats;
  EXPECT_EQ(a.tokens_per_layer, b.tokens_per_layer);
  EXPECT_EQ(a.image_tokens_per_layer, b.image_tokens_per_layer);
  EXPECT_EQ(a.kv_tokens_per_layer, b.kv_tokens_per_layer);
  test::expect_close(cached.logits, whole.logits, 5e-5 * whole.logits.pow(2).mean().sqrt().item<double>());
  EXPECT_EQ(cached.result.token_ids, whole.result.token_ids);
}

std::vector<std::string> specs() {
  return test::examples_and({"divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4", "uniform:keep_ratio=1/2 + vtw:layer=5",
                             "fastv:keep_ratio=1/4,layer=3,positions=compact",
                             "divprune:keep_ratio=1/3,positions=compact"});
}

bool can_run(const LoadedModel& model, const Request& request) {
  try {
    RequestRun(model, request, 0, std::make_shared<Call>(Callbacks()));
    return true;
  } catch (const Error&) {
  }
  return false;
}

class PrefixCacheRun : public ::testing::TestWithParam<std::tuple<const char*, std::string>> {};

// Random sets of demonstrations, with other questions and other demonstrations in between.
TEST_P(PrefixCacheRun, AnswersAreThoseWithoutIt) {
  const LoadedModel& model = test::tiny_model(std::get<0>(GetParam()));
  const std::string& spec = std::get<1>(GetParam());
  if (!can_run(model, request_of(prompt_of({0, 1}, 0), spec))) GTEST_SKIP() << "the model cannot run it";
  const auto seed = static_cast<uint32_t>(std::hash<std::string>()(spec));
  std::mt19937 random(seed);
  Cached cached(model);
  const std::vector<std::vector<int>> sets = {{0, 1, 2}, {3}, {0, 1}};
  for (int turn = 0; turn < 6; ++turn) {
    SCOPED_TRACE(turn);
    const Request request = request_of(prompt_of(sets[turn < 2 ? 0 : random() % sets.size()], turn), spec);
    expect_same(cached.ask(request), alone(model, request));
  }
  const c10::InferenceMode no_gradients;
  const RequestRun probe(model, request_of(prompt_of({0}, 0), spec), 0, std::make_shared<Call>(Callbacks()));
  const int depth = boundary_depth(probe.sequence.walk, model.config.decoder.num_layers);
  if (depth == 0)
    EXPECT_EQ(cached.counts().hits + cached.counts().misses, 0);
  else
    EXPECT_GE(cached.counts().hits, 3);
}

std::string name_of_case(const ::testing::TestParamInfo<std::tuple<const char*, std::string>>& info) {
  std::string name = std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Policies, PrefixCacheRun,
                         ::testing::Combine(::testing::ValuesIn(kFamilies), ::testing::ValuesIn(specs())),
                         name_of_case);

// What is reused is what the policy's boundary allows: nothing of it runs again.
TEST(PrefixCache, RunsWhatIsNew) {
  const LoadedModel& model = test::tiny_llava();
  for (const auto& [spec, depth] :
       {std::pair("none", 8), std::pair("divprune:keep_ratio=1/3", 8), std::pair("catp:keep_ratio=1/3,k=3", 3),
        std::pair("fastv:keep_ratio=1/3,layer=5", 5)}) {
    SCOPED_TRACE(spec);
    Cached cached(model);
    const Answered first = cached.ask(request_of(prompt_of({0, 1}, 0), spec, 1));
    const Answered second = cached.ask(request_of(prompt_of({0, 1}, 1), spec, 1));
    EXPECT_EQ(first.result.stats.reused_tokens, 0);
    const int64_t reused = second.result.stats.reused_tokens;
    EXPECT_EQ(reused, cached.counts().reused_tokens);
    EXPECT_GT(reused, 60);
    EXPECT_LT(second.result.stats.prefill_flops, first.result.stats.prefill_flops * (1 - 0.4 * depth / 8));
  }
}

// Whoever shares some of the demonstrations runs behind those.
TEST(PrefixCache, EndsAtEachExample) {
  const LoadedModel& model = test::tiny_llava();
  for (const std::string policy : {"none", "catp:keep_ratio=1/3,k=3"}) {
    SCOPED_TRACE(policy);
    Cached cached(model);
    cached.ask(request_of(prompt_of({0, 1, 2}, 0), policy));
    const int64_t bytes = cached.counts().bytes;
    const std::vector<std::vector<int>> sets = {{0, 1}, {0}, {0, 1, 3}, {0, 1, 2, 3}, {1}};
    std::vector<int64_t> reused;
    for (const std::vector<int>& set : sets) {
      const Request request = request_of(prompt_of(set, 1), policy);
      const Answered answer = cached.ask(request);
      expect_same(answer, alone(model, request));
      reused.push_back(answer.result.stats.reused_tokens);
    }
    EXPECT_EQ(reused[4], 0);
    EXPECT_GT(reused[1], 25);
    EXPECT_GT(reused[0], reused[1] + 25);
    EXPECT_EQ(reused[2], reused[0]);
    EXPECT_GT(reused[3], reused[0] + 25);
    EXPECT_LT(cached.counts().bytes, 4 * bytes);  // parts of one computation take no memory of their own
  }
}

TEST(PrefixCache, AnEqualHashIsNotEnough) {
  const LoadedModel& model = test::tiny_llava();
  const c10::InferenceMode no_gradients;
  PrefixCache cache(int64_t{1} << 30, [](const PrefixKey&) { return size_t{7}; });
  KvArena arena(model.config.decoder, model.dtype, model.device);
  const auto run_of = [&](const Chat& chat, const std::string& policy = "none", const std::string& salt = "") {
    Request request = request_of(chat, policy);
    request.salt = salt;
    return std::make_unique<RequestRun>(model, request, 0, std::make_shared<Call>(Callbacks()),
                                        RunExtras{.uses_prefixes = true});
  };
  const Chat known = prompt_of({0, 1}, 0);
  {
    auto run = run_of(known);
    Sequence& s = run->sequence;
    s.prefix.ends = prefix_ends(*s.prompt.layout);
    s.prefix.depth = 8;
    encode(model, s);
    DecoderPass pass(model, arena, {&s});
    pass.run_to(8);
    pass.finish();
    ASSERT_EQ(s.prefix.made.size(), 2U);
    cache.keep(s.prefix.made);
    s.kv = SequenceKv(0);
  }
  EXPECT_TRUE(cache.find(run_of(known)->sequence));
  EXPECT_TRUE(cache.find(run_of(prompt_of({0, 1}, 5))->sequence));
  Chat other_picture = known, other_pin = known, other_words = known;
  std::get<ImagePart>(other_picture.messages[0].content[0]) = picture(4);  // of the same size
  std::get<ImagePart>(other_pin.messages[0].content[0]).pin_all = true;
  std::get<TextPart>(other_words.messages[0].content[1]).text = "What is the red dog doing?";
  for (const Chat* other : {&other_picture, &other_pin, &other_words})
    EXPECT_FALSE(cache.find(run_of(*other)->sequence));
  EXPECT_FALSE(cache.find(run_of(prompt_of({1, 0}, 0))->sequence));
  EXPECT_FALSE(cache.find(run_of(known, "fastv:keep_ratio=1/2")->sequence));
  EXPECT_FALSE(cache.find(run_of(known, "none", "somebody else's")->sequence));
  cache = PrefixCache(0);
}

// Others that begin alike wait for the first, and then run behind it.
TEST(PrefixCache, WhatComesTogetherIsComputedOnce) {
  const LoadedModel& model = test::tiny_llava();
  Cached cached(model);
  std::vector<Request> requests;
  for (int i = 0; i < 4; ++i) requests.push_back(request_of(prompt_of({0, 1}, i), "catp:keep_ratio=1/3"));
  const std::vector<Answered> answers = cached.ask_together(requests);
  EXPECT_EQ(cached.counts().hits, 3);
  for (size_t i = 0; i < answers.size(); ++i) {
    SCOPED_TRACE(i);
    expect_same(answers[i], alone(model, requests[i]));
  }
}

// A cache for two prefixes, five of them in use by turns: what is let go while others run behind it stays right.
TEST(PrefixCache, LetsGoUnderPressure) {
  const LoadedModel& model = test::tiny_llava();
  int64_t one = 0;
  {
    Cached cached(model);
    cached.ask(request_of(prompt_of({0, 1}, 0), "none", 1));
    one = cached.counts().bytes;
    EXPECT_GT(one, 0);
    EXPECT_EQ(cached.arena().bytes_in_use() >= one, true);
  }
  Cached cached(model, 2 * one + one / 2);
  std::mt19937 random(5);
  for (int turn = 0; turn < 12; ++turn) {
    SCOPED_TRACE(turn);
    std::vector<Request> together;
    for (int i = 0; i < 3; ++i) {
      const int first = static_cast<int>(random() % 5);
      together.push_back(request_of(prompt_of({first, first + 1}, turn + i), "none", 3));
    }
    const std::vector<Answered> answers = cached.ask_together(together);
    for (size_t i = 0; i < answers.size(); ++i) expect_same(answers[i], alone(model, together[i]));
    EXPECT_LE(cached.counts().bytes, 2 * one + one / 2);
  }
  EXPECT_GT(cached.counts().hits, 0);
}

// ---- sessions ----

class SessionRun : public ::testing::TestWithParam<std::tuple<const char*, std::string>> {};

// Random conversations: each turn answers as one request with the whole conversation would.
TEST_P(SessionRun, TurnsAreThoseOfTheWholeConversation) {
  const auto& [checkpoint, spec] = GetParam();
  if (!can_run(test::tiny_model(checkpoint), request_of(prompt_of({0, 1}, 0), spec))) GTEST_SKIP() << "cannot run it";
  const Engine engine = Engine::load(test::golden_folder() / checkpoint, {.dtype = ComputeDtype::kFloat32});
  SessionOptions options;
  options.policy = spec;
  options.generation.max_new_tokens = 5;
  options.generation.greedy = true;
  Session session(engine, options);
  std::mt19937 random(static_cast<uint32_t>(std::hash<std::string>()(spec)));
  int64_t reused = 0;
  for (int turn = 0; turn < 5; ++turn) {
    SCOPED_TRACE(turn);
    std::vector<Part> content;
    if (turn == 0 || random() % 2 == 0) content.emplace_back(picture(turn));
    content.emplace_back(TextPart{"What is left of the tree number " + std::to_string(turn) + "?"});
    Chat whole = session.chat();
    whole.messages.push_back({"user", content});
    Request request;
    request.prompt = whole;
    request.policy = spec;
    request.options = options.generation;
    const Result expected = generate(test::tiny_model(checkpoint), request);
    const Result actual = session.ask(content);
    EXPECT_EQ(actual.token_ids, expected.token_ids);
    EXPECT_EQ(actual.kept, expected.kept);
    EXPECT_EQ(actual.stats.tokens_per_layer, expected.stats.tokens_per_layer);
    reused += actual.stats.reused_tokens;
  }
  EXPECT_EQ(session.chat().messages.size(), 10U);
  if (spec == "none") EXPECT_GT(reused, 100);
}

INSTANTIATE_TEST_SUITE_P(Policies, SessionRun,
                         ::testing::Combine(::testing::ValuesIn(kFamilies), ::testing::ValuesIn(specs())),
                         name_of_case);

TEST(Session, ACancelledTurnLeavesItAsItWas) {
  const Engine engine = Engine::load(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32});
  Session session(engine, {.generation = {.max_new_tokens = 4, .greedy = true}});
  session.ask({picture(0), TextPart{"What is this?"}});
  const Result cut = session.ask("And now?", {.should_cancel = [] { return true; }});
  EXPECT_EQ(cut.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(session.chat().messages.size(), 2U);
  EXPECT_THROW(session.ask({TextPart{std::string(100'000, 'a')}}), Error);
  EXPECT_EQ(session.chat().messages.size(), 2U);
  EXPECT_EQ(session.ask("And now?").token_ids.size(), 4U);
}

// Under a policy that looks at the question, other tokens survive in other turns; with `sticky` they only shrink.
TEST(Session, TokensComeBackUnlessSticky) {
  const Engine engine = Engine::load(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32});
  for (const bool sticky : {false, true}) {
    SCOPED_TRACE(sticky);
    Session session(engine, {.policy = "fastv:keep_ratio=1/4,layer=3,pool=image",
                             .generation = {.max_new_tokens = 3, .greedy = true},
                             .sticky = sticky});
    std::vector<int64_t> before = session.ask({picture(0), picture(2), TextPart{"What is the red cat doing?"}}).kept;
    bool came_back = false;
    for (int turn = 0; turn < 4; ++turn) {
      const std::vector<int64_t> now = session.ask("Where is tree number " + std::to_string(turn) + "?").kept;
      came_back |= !std::ranges::includes(before, now);
      before = now;
    }
    EXPECT_EQ(came_back, !sticky);
  }
}

}  // namespace
}  // namespace espalier
