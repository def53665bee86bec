// SPDX-License-Identifier: Apache-2.0
// Whole requests through Engine: batches, cancellation, threads, statistics, and bfloat16 within the limits of the
// oracle.
#include <gtest/gtest.h>

#include <atomic>
#include <limits>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "recording/record.h"
#include "runtime/encode.h"
#include "runtime/flops.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::expect_says;
using test::GoldenCase;
using test::message_of;

const Engine& engine() {
  static const Engine e = Engine::load(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32, .on_progress = {}});
  return e;
}

Request request_of(Prompt prompt, const char* policy, int64_t new_tokens) {
  Request r{.prompt = std::move(prompt), .policy = policy, .custom = {}, .options = {}, .trace = true};
  r.options.max_new_tokens = new_tokens;
  r.options.ignore_eos = true;
  return r;
}

// Four requests that differ in all that can differ.
std::vector<Request> mixed_batch() {
  std::vector<Request> batch;
  batch.push_back(request_of(test::in_context_prompt(2), "catp:keep_ratio=1/3", 12));
  batch[0].options.greedy = true;
  batch.push_back(request_of(RawPrompt{"USER: How are you? ASSISTANT:", {}, {}}, "none", 25));
  batch[1].options.temperature = 1.5;
  batch[1].options.top_k = 40;
  batch[1].options.seed = 11;
  batch.push_back(request_of(test::in_context_prompt(0), "fastv:keep_ratio=1/2", 7));
  batch[2].options.repetition_penalty = 1.3;
  batch[2].options.ignore_eos = false;
  batch.push_back(request_of(test::in_context_prompt(1), "random:num_kept=5", 0));
  return batch;
}

void expect_same_answer(const Result& a, const Result& b) {
  EXPECT_EQ(a.text, b.text);
  EXPECT_EQ(a.token_ids, b.token_ids);
  EXPECT_EQ(a.prompt_token_ids, b.prompt_token_ids);
  EXPECT_EQ(a.prompt, b.prompt);
  EXPECT_EQ(a.finish_reason, b.finish_reason);
  EXPECT_EQ(a.kept, b.kept);
  ASSERT_EQ(a.points.size(), b.points.size());
  for (size_t i = 0; i < a.points.size(); ++i) {
    EXPECT_EQ(a.points[i].kept, b.points[i].kept);
    EXPECT_EQ(a.points[i].candidates, b.points[i].candidates);
  }
  EXPECT_EQ(a.stats.tokens_per_layer, b.stats.tokens_per_layer);
  EXPECT_EQ(a.stats.kv_bytes, b.stats.kv_bytes);
  EXPECT_EQ(a.stats.prefill_flops, b.stats.prefill_flops);
}

TEST(Generate, BatchEqualsEachAlone) {
  const std::vector<Request> batch = mixed_batch();
  std::vector<std::string> streamed(batch.size());
  const std::vector<Result> together = engine().generate(batch, {.on_text =
                                                                     [&](size_t request, std::string_view piece) {
                                                                       streamed.at(request) += piece;
                                                                       return Continue::kGo;
                                                                     },
                                                                 .should_cancel = {},
                                                                 .on_progress = {}});
  ASSERT_EQ(together.size(), batch.size());
  for (size_t i = 0; i < batch.size(); ++i) {
    SCOPED_TRACE(i);
    expect_same_answer(together[i], engine().generate(batch[i]));
    EXPECT_EQ(streamed[i], together[i].text);
  }
  EXPECT_EQ(together[0].token_ids.size(), 12U);
  EXPECT_EQ(together[1].token_ids.size(), 25U);
  EXPECT_TRUE(together[3].token_ids.empty());
  EXPECT_EQ(together[3].kept.size(), 2 * 5U);  // of each image
  EXPECT_TRUE(engine().generate(std::span<const Request>()).empty());
}

// The penalty of generation_config.json's kind, on logits and ids of the golden: plain argmax and penalised differ.
TEST(Generate, SeedDecidesTheSampleAlone) {
  Request r = request_of(test::in_context_prompt(0), "none", 12);
  r.options.temperature = 2.0;
  r.options.seed = 1;
  const Result first = engine().generate(r);
  EXPECT_EQ(engine().generate(r).token_ids, first.token_ids);
  r.options.seed = 2;
  EXPECT_NE(engine().generate(r).token_ids, first.token_ids);
}

// Whatever sampling makes of it, a token's probability is the model's own: log_softmax in float64 of the logits behind
// the prompt.
TEST(Generate, LogprobsAreOfTheModelsOwnLogits) {
  const test::ScratchFolder folder;
  Request r = request_of(test::in_context_prompt(1), "fastv:keep_ratio=1/2", 3);
  dump(test::tiny_llava(), r, folder.path() / "run", {}, {});
  const at::Tensor logits = test::read_arrays(folder.path() / "run.safetensors").at("logits").to(at::kDouble);
  const at::Tensor last = logits[logits.size(0) - 1];
  const at::Tensor expected = last - last.logsumexp(0);
  r.options.do_sample = true;
  r.options.temperature = 3.0;
  r.options.top_k = 50;
  r.options.repetition_penalty = 1.8;
  r.options.top_logprobs = 20;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    r.options.seed = seed;
    const Result result = engine().generate(r);
    ASSERT_EQ(result.logprobs.size(), result.token_ids.size());
    const TokenLogprobs& first = result.logprobs[0];
    EXPECT_EQ(first.id, result.token_ids[0]);
    EXPECT_NEAR(first.logprob, expected[first.id].item<double>(), 1e-4);
    const at::Tensor sorted = std::get<0>(expected.sort(-1, /*descending=*/true));
    ASSERT_EQ(first.top.size(), 20U);
    for (int64_t i = 0; i < 20; ++i) {
      EXPECT_NEAR(first.top[i].logprob, expected[first.top[i].id].item<double>(), 1e-4);
      EXPECT_NEAR(first.top[i].logprob, sorted[i].item<double>(), 1e-4);
    }
  }
  r.options.top_logprobs.reset();
  EXPECT_TRUE(engine().generate(r).logprobs.empty());
}

TEST(Generate, CallbackEndsOnlyItsOwnRequest) {
  std::vector<Request> batch = mixed_batch();
  const std::vector<Result> whole = engine().generate(batch);
  const std::vector<Result> cut = engine().generate(
      batch, {.on_text =
                  [&](size_t request, std::string_view) {
                    return request == 0 ? Continue::kStop : request == 2 ? Continue::kCancel : Continue::kGo;
                  },
              .should_cancel = {},
              .on_progress = {}});
  EXPECT_EQ(cut[0].finish_reason, FinishReason::kStopped);
  EXPECT_LT(cut[0].token_ids.size(), whole[0].token_ids.size());
  EXPECT_EQ(cut[2].finish_reason, FinishReason::kCancelled);
  expect_same_answer(cut[1], whole[1]);
  expect_same_answer(cut[3], whole[3]);
}

// ---- cancellation ----

TEST(Generate, CancelledAtEveryCheck) {
  std::vector<Request> batch = {request_of(test::in_context_prompt(1), "catp:keep_ratio=1/3", 6),
                                request_of(test::in_context_prompt(0), "none", 4)};
  int checks = 0;
  const std::vector<Result> whole = engine().generate(batch, {.on_text = {},
                                                              .should_cancel =
                                                                  [&] {
                                                                    ++checks;
                                                                    return false;
                                                                  },
                                                              .on_progress = {}});
  EXPECT_GE(checks, 3 + 8 + 5);  // each image, each layer, each step
  for (int stop_at = 1; stop_at <= checks; ++stop_at) {
    SCOPED_TRACE(stop_at);
    int seen = 0;
    const std::vector<Result> cut = engine().generate(
        batch, {.on_text = {}, .should_cancel = [&] { return ++seen == stop_at; }, .on_progress = {}});
    ASSERT_EQ(cut.size(), 2U);
    EXPECT_EQ(seen, stop_at);  // and not asked again
    EXPECT_EQ(cut[0].finish_reason, FinishReason::kCancelled);
    EXPECT_LT(cut[0].token_ids.size(), 6U);
    EXPECT_TRUE(std::equal(cut[0].token_ids.begin(), cut[0].token_ids.end(), whole[0].token_ids.begin()));
    EXPECT_TRUE(stop_at > 3 + 8 || cut[0].token_ids.empty());
    // A request that had its answer keeps it.
    EXPECT_EQ(cut[1].finish_reason, cut[1].token_ids.size() == 4 ? FinishReason::kLength : FinishReason::kCancelled);
  }
  expect_same_answer(engine().generate(batch)[0], whole[0]);  // the engine is as it was
}

// Asked for no tokens, a request is not done before its prefill is.
TEST(Generate, CancelledWithoutTokensAskedFor) {
  const Request r = request_of(test::in_context_prompt(0), "none", 0);
  const Result cut = engine().generate(r, {.on_text = {}, .should_cancel = [] { return true; }, .on_progress = {}});
  EXPECT_EQ(cut.finish_reason, FinishReason::kCancelled);
  EXPECT_EQ(engine().generate(r).finish_reason, FinishReason::kLength);
}

TEST(Generate, ACancelledRecordingLeavesNoFiles) {
  const test::ScratchFolder folder;
  Request r = request_of(test::in_context_prompt(0), "none", 0);
  const Callbacks cancel{.on_text = {}, .should_cancel = [] { return true; }, .on_progress = {}};
  EXPECT_THROW(record(test::tiny_llava(), r,
                      {.signals = folder.path() / "s", .layout = folder.path() / "l", .only = {}}, cancel),
               Cancelled);
  EXPECT_THROW(dump(test::tiny_llava(), r, folder.path() / "d", {}, cancel), Cancelled);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(Generate, ProgressReachesItsTotal) {
  std::vector<std::pair<std::string, std::pair<int64_t, int64_t>>> last;
  engine().generate(
      request_of(test::in_context_prompt(1), "none", 3),
      {.on_text = {}, .should_cancel = {}, .on_progress = [&](std::string_view stage, int64_t done, int64_t total) {
         if (last.empty() || last.back().first != stage) last.push_back({std::string(stage), {0, total}});
         EXPECT_GT(done, last.back().second.first);
         last.back().second = {done, total};
       }});
  ASSERT_EQ(last.size(), 3U);
  EXPECT_EQ(last[0], (std::pair{std::string("encode"), std::pair<int64_t, int64_t>(2, 2)}));
  EXPECT_EQ(last[1], (std::pair{std::string("prefill"), std::pair<int64_t, int64_t>(8, 8)}));
  EXPECT_EQ(last[2], (std::pair{std::string("decode"), std::pair<int64_t, int64_t>(3, 3)}));
}

TEST(Generate, TwoThreadsOnOneEngine) {
  const std::vector<Request> batch = mixed_batch();
  std::vector<Result> expected;
  for (const Request& r : batch) expected.push_back(engine().generate(r));
  std::atomic<int> wrong = 0;
  const auto work = [&](size_t first) {
    for (size_t round = 0; round < 6; ++round) {
      const size_t i = (first + round) % batch.size();
      const Result r = engine().generate(batch[i]);
      wrong += r.token_ids != expected[i].token_ids || r.kept != expected[i].kept;
    }
  };
  std::thread one(work, 0), two(work, 1);
  one.join();
  two.join();
  EXPECT_EQ(wrong, 0);
}

// ---- what a request is refused for ----

TEST(Generate, RefusesBeforeAnyWork) {
  const auto refused = [](const std::function<void(Request&)>& set) {
    std::vector<Request> batch = {request_of(test::in_context_prompt(0), "none", 2),
                                  request_of(test::in_context_prompt(0), "none", 2)};
    set(batch[1]);
    bool ran = false;
    const std::string message = message_of<Error>([&] {
      engine().generate(
          batch,
          {.on_text = {}, .should_cancel = {}, .on_progress = [&](std::string_view, int64_t, int64_t) { ran = true; }});
    });
    EXPECT_FALSE(ran);
    return message;
  };
  expect_says(refused([](Request& r) { r.options.max_new_tokens = -1; }), {"max_new_tokens", "-1"});
  expect_says(refused([](Request& r) { r.options.max_new_tokens = std::numeric_limits<int64_t>::max(); }),
              {"positions"});
  expect_says(refused([](Request& r) { r.options.temperature = 0; }), {"temperature"});
  expect_says(refused([](Request& r) { r.policy = "fastv:keep_ratio=1/2,layer=9"; }), {"fastv", "9"});
  expect_says(refused([](Request& r) { r.policy = "magic"; }), {"magic"});
  expect_says(refused([](Request& r) { r.prompt = RawPrompt{"<image>", {}, {}}; }), {"1 image placeholders"});
}

// ---- statistics ----

TEST(Stats, OfAnUnprunedRequest) {
  const Result r = engine().generate(request_of(test::in_context_prompt(1), "none", 5));
  const int64_t n = std::ssize(r.prompt_token_ids);
  EXPECT_EQ(r.stats.prompt_tokens, n);
  EXPECT_EQ(r.stats.image_tokens, (std::vector<int64_t>{16, 16}));
  EXPECT_EQ(r.stats.tokens_per_layer, std::vector<int64_t>(8, n));
  EXPECT_EQ(r.stats.kv_tokens_per_layer, std::vector<int64_t>(8, n));
  EXPECT_EQ(r.stats.image_tokens_per_layer, std::vector<std::vector<int64_t>>(8, {16, 16}));
  EXPECT_EQ(r.stats.new_tokens, 5);
  EXPECT_EQ(r.stats.kv_bytes, 8 * n * 2 * 4 * 32 * 4);  // layers, tokens, keys and values, heads, width, bytes
  EXPECT_EQ(r.stats.kv_bytes_unpruned, r.stats.kv_bytes);
  // A layer by hand: q, k, v and o of 128 x 128, gate, up and down of 128 x 256, and scores and values over n(n+1)/2
  // pairs of width 128.
  const double layer = 2.0 * double(n) * (4 * 128 * 128 + 3 * 128 * 256) + 2.0 * 2.0 * 128 * double(n * (n + 1) / 2);
  EXPECT_DOUBLE_EQ(r.stats.prefill_flops, 8 * layer);
  EXPECT_DOUBLE_EQ(r.stats.prefill_flops_unpruned, 8 * layer);
  EXPECT_EQ(r.stats.probe_flops, 0);
  EXPECT_GT(r.stats.peak_memory_bytes, 1 << 20);
  EXPECT_GT(r.stats.threads, 0);
  for (const double ms : {r.stats.encode_ms, r.stats.prefill_ms, r.stats.decode_ms}) EXPECT_GT(ms, 0);
  EXPECT_GE(r.stats.select_ms, 0);
}

TEST(Stats, OfAPrunedRequest) {
  const Result r = engine().generate(request_of(test::in_context_prompt(1), "fastv:num_kept=8,layer=3", 2));
  const int64_t n = r.stats.prompt_tokens;
  const std::vector<int64_t> expected = {n, n, n, n - 24, n - 24, n - 24, n - 24, n - 24};
  EXPECT_EQ(r.stats.tokens_per_layer, expected);
  EXPECT_EQ(r.stats.kv_tokens_per_layer, expected);
  EXPECT_EQ(r.kept.size(), 8U);
  const std::vector<int64_t>& behind = r.stats.image_tokens_per_layer.at(3);
  ASSERT_EQ(behind.size(), 2U);
  EXPECT_EQ(behind[0] + behind[1], 8);
  EXPECT_EQ(r.stats.image_tokens_per_layer[2], (std::vector<int64_t>{16, 16}));
  int64_t of_first = 0;  // the first image lies before the second
  for (const int64_t t : r.kept) of_first += t < n / 2;
  EXPECT_EQ(behind[0], of_first);
  EXPECT_EQ(r.stats.kv_bytes, std::accumulate(expected.begin(), expected.end(), int64_t{0}) * 2 * 4 * 32 * 4);
  EXPECT_GT(r.stats.kv_bytes_unpruned, r.stats.kv_bytes);
  EXPECT_GT(r.stats.prefill_flops_unpruned, r.stats.prefill_flops);
  EXPECT_EQ(r.stats.probe_flops, 2 * 4 * 32 * 32);  // one row of four heads against 32 columns
  EXPECT_GT(r.stats.select_ms, 0);
}

TEST(Stats, FlopsOfAKnownModel) {
  DecoderConfig c;  // Llama 7B: 4096, 11008, 32 layers
  // docs/specs/catp.md 8.3: 4nd² + 2n²d + 3ndm multiply-adds per layer, whole squares counted, 20.83 T in all for 2880
  // image tokens.
  const double n = 2880, d = 4096, m = 11008;
  const double whole_square = 4 * n * d * d + 2 * n * n * d + 3 * n * d * m;
  EXPECT_NEAR(32 * whole_square / 1e12, 20.83, 0.01);
  const double causal =
      2 * (whole_square - n * n * d) + 2 * n * d;  // half of the square and half of the diagonal, two operations each
  EXPECT_NEAR(layer_flops(c, 2880) / causal, 1, 1e-9);
  c.num_kv_heads = 8;
  EXPECT_NEAR(layer_flops(c, 2880) - causal, -2 * n * d * d * 1.5, 1e6);  // k and v are a quarter
}

TEST(CountTokens, BeforeAnythingRuns) {
  const Prompt prompt = test::in_context_prompt(3);
  const TokenCounts counts = engine().count_tokens(prompt);
  EXPECT_EQ(counts.tokens_per_image, std::vector<int64_t>(4, 16));
  EXPECT_EQ(counts.max_positions, 4096);
  EXPECT_EQ(counts.prompt_tokens, std::ssize(engine().generate(request_of(prompt, "none", 1)).prompt_token_ids));
}

// Whoever shortens a prompt until it fits asks so.
TEST(CountTokens, AlsoOfWhatIsTooLong) {
  const Prompt prompt = test::in_context_prompt(300);
  const TokenCounts counts = engine().count_tokens(prompt);
  EXPECT_GT(counts.prompt_tokens, counts.max_positions);
  expect_says(message_of<Error>([&] { engine().generate(request_of(prompt, "none", 1)); }),
              {"prompt: ", "pass the model's limit of 4096"});
}

// ---- dtypes ----

class LowPrecision : public testing::TestWithParam<ComputeDtype> {};

// compare.py's profile `half`: 0.8 of the rms at most, 0.1 in the mean square; tokens equal, or different at a near
// tie.
TEST_P(LowPrecision, WithinTheLimitsOfTheOracle) {
  const LoadedModel model = load_model(test::tiny_llava_folder(), {.dtype = GetParam(), .on_progress = {}});
  const test::ScratchFolder folder;
  for (const char* name : {"single", "icl4"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden(name);
    dump(model, golden.request(), folder.path() / name, golden.tensors, {});
    const test::Arrays mine = test::read_arrays(folder.path() / (std::string(name) + ".safetensors"));
    const test::Arrays expected = test::read_arrays(golden.tensors);
    for (const auto& [key, tensor] : mine) {
      const auto found = expected.find(key);
      if (found == expected.end() || tensor.scalar_type() == at::kLong || key == "pixel_values") continue;
      const test::RelativeError error = test::relative_error(tensor, found->second);
      EXPECT_LT(error.max, 0.8) << key;
      EXPECT_LT(error.rms, 0.1) << key;
    }
    const at::Tensor tail = expected.at("logits_tail");
    const at::Tensor own_tail = mine.at("logits").slice(0, mine.at("logits").size(0) - tail.size(0));
    EXPECT_LT(test::relative_error(own_tail, tail).rms, 0.1);
    const at::Tensor tokens = mine.at("greedy_tokens"), golden_tokens = expected.at("greedy_tokens");
    const double slack = 0.15 * tail.std().item<double>();
    for (int64_t i = 0; i < tokens.size(0); ++i) {
      if (tokens[i].item<int64_t>() == golden_tokens[i].item<int64_t>()) continue;
      EXPECT_LT(expected.at("greedy_margin")[i].item<double>(), slack) << "step " << i;
      break;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, LowPrecision, testing::Values(ComputeDtype::kBFloat16, ComputeDtype::kFloat16),
                         [](const auto& dtype) { return dtype.param == ComputeDtype::kBFloat16 ? "bf16" : "f16"; });

}  // namespace
}  // namespace espalier
