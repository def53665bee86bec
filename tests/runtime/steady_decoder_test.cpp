// SPDX-License-Identifier: Apache-2.0
// Decoding in steady buffers against decode_step(), bit for bit. A graph that calls what it was given stands in for
// CUDA's, so that all but the recording itself is tested here; where there is a GPU the real one is too.
#include "runtime/steady_decoder.h"

#include <ATen/Context.h>
#include <ATen/ops/equal.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <thread>

#include "espalier/engine.h"
#include "kernels/support/device_graph.h"
#include "runtime/decode.h"
#include "runtime/encode.h"
#include "runtime/generate.h"
#include "runtime/prefill.h"
#include "runtime/prompt_packer.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

class CallsAgain : public kernels::DeviceGraph {
 public:
  struct Counts {
    int records = 0, launches = 0;
  };
  explicit CallsAgain(Counts& counts) : counts_(counts) {}
  void record(const std::function<void()>& work) override {
    ++counts_.records;
    work_ = work;
    work_();
  }
  void launch() override {
    ++counts_.launches;
    work_();
  }

 private:
  Counts& counts_;
  std::function<void()> work_;
};

struct Case {
  int shots;
  std::string policy;
};

// Requests after their prefill.
struct Prefilled {
  std::vector<Sequence> sequences;
  KvCache cache;

  Prefilled(const LoadedModel& model, const std::vector<Case>& cases) {
    sequences.reserve(cases.size());
    for (const Case& c : cases) {
      PolicyPtr policy = make_policy(c.policy);
      PackedPrompt packed = pack_prompt(model, test::in_context_prompt(c.shots), 64, policy.get());
      sequences.emplace_back(std::move(packed), std::move(policy), model.facts);
      encode(model, sequences.back(), {});
    }
    prefill(model, sequences, cache, {});
  }
};

std::vector<size_t> counted(size_t n) {
  std::vector<size_t> all(n);
  for (size_t i = 0; i < n; ++i) all[i] = i;
  return all;
}

// An id that changes from step to step and from sequence to sequence.
int32_t id_of(size_t sequence, int step) {
  return static_cast<int32_t>(20 + 7 * sequence + 3 * static_cast<size_t>(step));
}

// `steps` steps of both, over all sequences.
void expect_same_logits(const LoadedModel& model, const std::vector<Case>& cases, SteadyDecoder& steady, int steps,
                        int64_t room) {
  const c10::InferenceMode no_gradients;
  Prefilled a(model, cases), b(model, cases);
  const std::vector<size_t> all = counted(cases.size());
  steady.begin(b.cache, b.sequences, all, room);
  EXPECT_EQ(b.cache[0].key().defined(), false) << "the prefill's cache should be let go";
  for (int step = 0; step < steps; ++step) {
    std::vector<int32_t> ids;
    for (const size_t s : all) ids.push_back(id_of(s, step));
    const at::Tensor expected = decode_step(model, a.sequences, all, ids, a.cache);
    const at::Tensor actual = steady.step(b.sequences, all, ids);
    ASSERT_TRUE(at::equal(actual, expected)) << "step " << step;
    ASSERT_EQ(a.sequences[0].next_position, b.sequences[0].next_position);
  }
}

const std::vector<Case>& mixed_cases() {
  static const std::vector<Case> cases = {
      {2, "catp:keep_ratio=1/3"}, {0, "none"}, {1, "fastv:keep_ratio=1/2,positions=compact"}};
  return cases;
}

TEST(SteadyDecoder, EqualsDecodeStep) {
  for (const char* checkpoint : {"llava15", "qwen25vl"}) {
    SCOPED_TRACE(checkpoint);
    CallsAgain::Counts counts;
    SteadyDecoder steady(test::tiny_model(checkpoint), std::make_unique<CallsAgain>(counts));
    const std::vector<Case> cases =
        std::string(checkpoint) == "llava15" ? mixed_cases() : std::vector<Case>{{1, "none"}, {0, "random:num_kept=5"}};
    expect_same_logits(test::tiny_model(checkpoint), cases, steady, 8, 64);
    EXPECT_EQ(counts.records, 1);
    EXPECT_EQ(counts.launches, 6);  // of eight steps, those from the third on
  }
}

TEST(SteadyDecoder, EqualsDecodeStepWithAWindowAndInOtherDtypes) {
  for (const ComputeDtype dtype : {ComputeDtype::kFloat32, ComputeDtype::kBFloat16}) {
    LoadedModel model = load_model(test::tiny_llava_folder(), {.dtype = dtype, .on_progress = {}});
    model.config.decoder.sliding_window = model.facts.sliding_window = 24;
    SteadyDecoder steady(model, nullptr);
    expect_same_logits(model, {{1, "fastv:keep_ratio=1/2"}, {0, "none"}}, steady, 6, 64);
  }
}

// The second answer of the same sizes finds buffers and recording; one of other sizes records again.
TEST(SteadyDecoder, KeepsItsRecordingForTheSameSizes) {
  CallsAgain::Counts counts;
  SteadyDecoder steady(test::tiny_llava(), std::make_unique<CallsAgain>(counts));
  const std::vector<Case> one = {{1, "catp:keep_ratio=1/3"}};
  expect_same_logits(test::tiny_llava(), one, steady, 5, 64);
  EXPECT_EQ(counts.records, 1);
  EXPECT_EQ(counts.launches, 3);
  expect_same_logits(test::tiny_llava(), one, steady, 5, 64);
  EXPECT_EQ(counts.records, 1);
  EXPECT_EQ(counts.launches, 8);
  expect_same_logits(test::tiny_llava(), mixed_cases(), steady, 5, 64);
  EXPECT_EQ(counts.records, 2);
  // Same lengths, but positions that differ from layer to layer: another recording.
  expect_same_logits(test::tiny_llava(), {{1, "fastv:keep_ratio=1/2"}}, steady, 5, 64);
  expect_same_logits(test::tiny_llava(), {{1, "fastv:keep_ratio=1/2,positions=compact"}}, steady, 5, 64);
  EXPECT_EQ(counts.records, 4);
}

TEST(SteadyDecoder, GrowsWhenItsRoomIsUsedUp) {
  CallsAgain::Counts counts;
  SteadyDecoder steady(test::tiny_llava(), std::make_unique<CallsAgain>(counts));
  expect_same_logits(test::tiny_llava(), {{0, "none"}, {1, "catp:keep_ratio=1/3"}}, steady, 150, 1);
  EXPECT_GE(counts.records, 2);
}

// A sequence that has ended stays in the batch and must not disturb the others, even where its room is used up.
TEST(SteadyDecoder, EndedSequencesDisturbNobody) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = test::tiny_llava();
  Prefilled a(model, mixed_cases()), b(model, mixed_cases());
  SteadyDecoder steady(model, nullptr);
  steady.begin(b.cache, b.sequences, counted(3), 1);
  for (int step = 0; step < 100; ++step) {
    const std::vector<size_t> active = step < 40   ? counted(3)
                                       : step < 60 ? std::vector<size_t>{0, 2}
                                                   : std::vector<size_t>{2};
    std::vector<int32_t> ids;
    for (const size_t s : active) ids.push_back(id_of(s, step));
    const at::Tensor expected = decode_step(model, a.sequences, active, ids, a.cache);
    const at::Tensor actual = steady.step(b.sequences, active, ids);
    ASSERT_EQ(actual.sizes(), expected.sizes());
    // Another number of rows may take another kernel of the linear layers.
    test::expect_close(actual, expected, 1e-4);
  }
}

std::vector<Request> requests() {
  std::vector<Request> batch;
  for (const Case& c : mixed_cases()) {
    Request r{
        .prompt = test::in_context_prompt(c.shots), .policy = c.policy, .custom = {}, .options = {}, .trace = false};
    r.options.max_new_tokens = 10 + 4 * c.shots;
    r.options.ignore_eos = true;
    r.options.temperature = 1.5;
    batch.push_back(std::move(r));
  }
  return batch;
}

TEST(SteadyDecoder, AnswersAreTheSame) {
  const std::vector<Request> batch = requests();
  IdleDecoders idle(1 << 30);
  RunHooks hooks;
  hooks.decoders = &idle;
  const std::vector<Result> plain = generate_batch(test::tiny_llava(), batch, {});
  for (int again = 0; again < 2; ++again) {
    const std::vector<Result> steady = generate_batch(test::tiny_llava(), batch, {}, hooks);
    for (size_t i = 0; i < batch.size(); ++i) EXPECT_EQ(steady[i].token_ids, plain[i].token_ids);
    const auto& kernels = steady[0].stats.kernels;
    EXPECT_NE(std::ranges::find(kernels, std::pair<std::string, std::string>("decode", "launches")), kernels.end());
  }
}

TEST(SteadyDecoder, AnswersAtTheSameTimeEachHaveTheirOwn) {
  const std::vector<Request> batch = requests();
  IdleDecoders idle(1 << 30);
  RunHooks hooks;
  hooks.decoders = &idle;
  const std::vector<Result> plain = generate_batch(test::tiny_llava(), {&batch[0], 1}, {});
  std::vector<std::vector<Result>> found(3);
  std::vector<std::thread> threads;
  for (auto& own : found)
    threads.emplace_back([&] { own = generate_batch(test::tiny_llava(), {&batch[0], 1}, {}, hooks); });
  for (std::thread& thread : threads) thread.join();
  for (const auto& own : found) EXPECT_EQ(own[0].token_ids, plain[0].token_ids);
}

// Policies in turn, as a comparison or a server has them, each find their own buffers again.
TEST(IdleDecoders, FindTheOneThatFits) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = test::tiny_llava();
  IdleDecoders idle(1 << 30);
  const SteadyDecoder* first_seen[2] = {};
  for (int round = 0; round < 3; ++round)
    for (const int which : {0, 1}) {
      Prefilled run(model, {{which, which == 0 ? "none" : "catp:keep_ratio=1/3"}});
      auto decoder = idle.begin(model, run.cache, run.sequences, {0}, 64);
      EXPECT_GT(decoder->bytes(), 0);
      if (round == 0) first_seen[which] = decoder.get();
      EXPECT_EQ(decoder.get(), first_seen[which]);
      idle.keep(std::move(decoder));
    }
  // Of many shapes a few are kept: the oldest was made anew, and still answers right.
  for (int64_t room = 100; room < 700; room += 100) {
    Prefilled a(model, {{0, "none"}}), b(model, {{0, "none"}});
    auto decoder = idle.begin(model, b.cache, b.sequences, {0}, room);
    EXPECT_TRUE(at::equal(decoder->step(b.sequences, {0}, {21}), decode_step(model, a.sequences, {0}, {21}, a.cache)));
    idle.keep(std::move(decoder));
  }
}

TEST(SteadyDecoderCuda, RecordedStepsGiveTheAnswersOfLaunchedOnes) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  EngineOptions options{.dtype = ComputeDtype::kFloat32, .on_progress = {}};
  options.device = DeviceKind::kCuda;
  const Engine recorded = Engine::load(test::tiny_llava_folder(), options);
  options.decode_graphs = false;
  const Engine launched = Engine::load(test::tiny_llava_folder(), options);
  std::vector<Request> batch = requests();
  for (Request& request : batch) request.options.greedy = true;
  const std::vector<Result> expected = launched.generate(batch);
  for (int again = 0; again < 2; ++again) {
    const std::vector<Result> found = recorded.generate(batch);
    for (size_t i = 0; i < batch.size(); ++i) EXPECT_EQ(found[i].token_ids, expected[i].token_ids);
    const auto& kernels = found[0].stats.kernels;
    const auto decode = std::ranges::find(kernels, "decode", &std::pair<std::string, std::string>::first);
    ASSERT_NE(decode, kernels.end());
    EXPECT_EQ(decode->second, again == 0 ? "device_graph + launches" : "device_graph");
  }
}

}  // namespace
}  // namespace espalier
