// SPDX-License-Identifier: Apache-2.0
// One loop, however it is called: in slices or at once, packed or alone, over one run or several, launched or recorded.
#include "runtime/decoder_pass.h"

#include <ATen/ops/equal.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "espalier/error.h"
#include "kernels/support/device_graph.h"
#include "runtime/encode.h"
#include "runtime/generate.h"
#include "runtime/recorded_steps.h"
#include "runtime/schedule.h"
#include "tests/runtime/masked_run.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

struct Case {
  int shots;
  std::string policy;
};

const std::vector<Case>& mixed_cases() {
  static const std::vector<Case> cases = {
      {2, "catp:keep_ratio=1/3"}, {0, "none"}, {1, "fastv:keep_ratio=1/2,positions=compact"}};
  return cases;
}

// An id that changes from step to step and from sequence to sequence.
int32_t id_of(size_t sequence, int step) {
  return static_cast<int32_t>(20 + 7 * sequence + 3 * static_cast<size_t>(step));
}

// Requests with an arena of their own, prefilled `slice` layers at a time.
class Prefilled {
 public:
  Prefilled(const LoadedModel& model, const std::vector<Case>& cases, int slice = 1000, int64_t room = 8)
      : model_(model), arena(model.config.decoder, model.dtype, model.device) {
    for (const Case& c : cases) {
      sequences_.push_back(std::make_unique<Sequence>(
          test::sequence_for(model, test::in_context_prompt(c.shots), make_policy(c.policy))));
      sequences_.back()->room = room;
      encode(model, *sequences_.back());
      all.push_back(sequences_.back().get());
    }
    DecoderPass pass(model, arena, all);
    const int layers = model.config.decoder.num_layers;
    while (pass.depth() < layers) pass.run_to(std::min(layers, pass.depth() + slice));
    EXPECT_TRUE(pass.take_failures().empty());
    logits = pass.finish();
  }

  std::vector<int32_t> ids_at(int step) const {
    std::vector<int32_t> ids;
    for (size_t s = 0; s < all.size(); ++s) ids.push_back(id_of(s, step));
    return ids;
  }
  at::Tensor step(int step) {
    DecoderPass pass(model_, arena, all, ids_at(step));
    pass.run_to(model_.config.decoder.num_layers);
    return pass.finish();
  }

 private:
  const LoadedModel& model_;

 public:
  KvArena arena;
  std::vector<Sequence*> all;
  at::Tensor logits;

 private:
  std::vector<std::unique_ptr<Sequence>> sequences_;
};

TEST(DecoderPass, SlicesEqualTheWhole) {
  const c10::InferenceMode no_gradients;
  for (const char* checkpoint : {"llava15", "qwen25vl"}) {
    SCOPED_TRACE(checkpoint);
    const std::vector<Case> cases =
        std::string(checkpoint) == "llava15" ? mixed_cases() : std::vector<Case>{{1, "none"}, {0, "random:num_kept=5"}};
    Prefilled whole(test::tiny_model(checkpoint), cases), sliced(test::tiny_model(checkpoint), cases, 1);
    EXPECT_TRUE(at::equal(whole.logits, sliced.logits));
    for (int step = 0; step < 3; ++step) EXPECT_TRUE(at::equal(whole.step(step), sliced.step(step)));
  }
}

// Rows that lie in several runs, some of them read by two sequences, are seen as if they were one.
TEST(DecoderPass, SharedRunsEqualOwnOnes) {
  const c10::InferenceMode no_gradients;
  for (const int64_t window : {0, 24}) {
    SCOPED_TRACE(window);
    LoadedModel model = load_model(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32});
    model.config.decoder.sliding_window = model.facts.sliding_window = window;
    const std::vector<Case> cases = {{1, "none"}, {2, "none"}, {0, "none"}};
    Prefilled own(model, cases), shared(model, cases);
    // The second of the three in three runs, the first in two.
    const int layers = model.config.decoder.num_layers;
    std::vector<SequenceKv> kept;
    kept.push_back(shared.all[1]->kv.share(std::vector<int64_t>(static_cast<size_t>(layers), 7)));
    kept.push_back(shared.all[1]->kv.share(std::vector<int64_t>(static_cast<size_t>(layers), 20)));
    kept.push_back(shared.all[0]->kv.share(std::vector<int64_t>(static_cast<size_t>(layers), 9)));
    EXPECT_EQ(shared.all[1]->kv.runs(0).size(), 3U);
    for (int step = 0; step < 4; ++step) {
      const at::Tensor expected = own.step(step), actual = shared.step(step);
      test::expect_close(actual, expected, 5e-5 * expected.pow(2).mean().sqrt().item<double>(),
                         "step " + std::to_string(step));
    }
  }
}

// What one policy throws ends its own sequence; the others do not notice.
TEST(DecoderPass, AFailureLeavesTheOthersAlone) {
  struct Fails final : test::RandomKeep {
    using RandomKeep::RandomKeep;
    std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
      std::vector<Step> steps = RandomKeep::steps(model, prompt);
      for (Step& step : steps)
        step.decide = [](const TokenLayout&, std::span<const at::Tensor>) -> Verdict { throw Error("as it should"); };
      return steps;
    }
  };
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = test::tiny_llava();
  for (const Site site : {Site::kBeforeLayer, Site::kAfterAttention, Site::kCache}) {
    SCOPED_TRACE(name_of(site));
    Prefilled alone(model, {{1, "fastv:keep_ratio=1/2"}});
    KvArena arena(model.config.decoder, model.dtype, model.device);
    const auto bad = std::make_shared<Fails>(std::vector<ActPoint>{{site, 3}}, 0.5, 1, model.facts.num_kv_heads);
    Sequence fails = test::sequence_for(model, test::in_context_prompt(2), bad);
    Sequence goes_on = test::sequence_for(model, test::in_context_prompt(1), make_policy("fastv:keep_ratio=1/2"));
    encode(model, fails);
    encode(model, goes_on);
    DecoderPass pass(model, arena, {&fails, &goes_on});
    pass.run_to(model.config.decoder.num_layers);
    const auto failures = pass.take_failures();
    ASSERT_EQ(failures.size(), 1U);
    EXPECT_EQ(failures[0].sequence, &fails);
    EXPECT_THROW(std::rethrow_exception(failures[0].error), Error);
    test::expect_close(pass.finish(), alone.logits, 1e-5);
    goes_on.kv = fails.kv = SequenceKv(0);
  }
}

TEST(DecoderPass, WhoLeavesLeavesTheOthersAlone) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = test::tiny_llava();
  Prefilled alone(model, {{1, "fastv:keep_ratio=1/2"}});
  KvArena arena(model.config.decoder, model.dtype, model.device);
  Sequence leaves = test::sequence_for(model, test::in_context_prompt(2), make_policy("none"));
  Sequence stays = test::sequence_for(model, test::in_context_prompt(1), make_policy("fastv:keep_ratio=1/2"));
  encode(model, leaves);
  encode(model, stays);
  DecoderPass pass(model, arena, {&leaves, &stays});
  pass.run_to(4);
  pass.leave(&leaves);
  pass.run_to(model.config.decoder.num_layers);
  test::expect_close(pass.finish(), alone.logits, 1e-5);
  leaves.kv = stays.kv = SequenceKv(0);
}

// ---- recorded steps: a graph that calls what it was given stands in for CUDA's ----

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

RecordedSteps::MakeGraph counting(CallsAgain::Counts& counts) {
  return [&counts] { return std::make_unique<CallsAgain>(counts); };
}

void expect_recorded_equals_launched(const LoadedModel& model, const std::vector<Case>& cases, int steps,
                                     CallsAgain::Counts& counts, int64_t room = 64) {
  const c10::InferenceMode no_gradients;
  Prefilled a(model, cases, 1000, room), b(model, cases, 1000, room);
  RecordedSteps recorded(model, b.arena, counting(counts));
  for (int step = 0; step < steps; ++step) {
    ASSERT_TRUE(RecordedSteps::can_step(b.all));
    const at::Tensor expected = a.step(step), actual = recorded.step(b.all, b.ids_at(step));
    ASSERT_TRUE(at::equal(actual, expected)) << "step " << step;
    ASSERT_EQ(a.all[0]->num_decoded, b.all[0]->num_decoded);
  }
}

TEST(RecordedSteps, EqualLaunchedOnes) {
  for (const char* checkpoint : {"llava15", "qwen25vl"}) {
    SCOPED_TRACE(checkpoint);
    CallsAgain::Counts counts;
    const std::vector<Case> cases =
        std::string(checkpoint) == "llava15" ? mixed_cases() : std::vector<Case>{{1, "none"}, {0, "random:num_kept=5"}};
    expect_recorded_equals_launched(test::tiny_model(checkpoint), cases, 8, counts);
    EXPECT_GE(counts.records, 1);  // again where a length passes what its recording is for
    EXPECT_GE(counts.launches, 3);
  }
}

TEST(RecordedSteps, WithAWindowAndInOtherDtypes) {
  for (const ComputeDtype dtype : {ComputeDtype::kFloat32, ComputeDtype::kBFloat16}) {
    LoadedModel model = load_model(test::tiny_llava_folder(), {.dtype = dtype});
    model.config.decoder.sliding_window = model.facts.sliding_window = 24;
    CallsAgain::Counts counts;
    expect_recorded_equals_launched(model, {{1, "fastv:keep_ratio=1/2"}, {0, "none"}}, 6, counts);
  }
}

// Where the arena's buffers moved, what was recorded over the old ones is not launched.
TEST(RecordedSteps, RecordAgainWhereBuffersMoved) {
  CallsAgain::Counts counts;
  expect_recorded_equals_launched(test::tiny_llava(), {{0, "none"}, {1, "catp:keep_ratio=1/3"}}, 150, counts, 0);
  EXPECT_GE(counts.records, 2);
}

TEST(RecordedSteps, OthersJoinAndLeave) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = test::tiny_llava();
  Prefilled a(model, mixed_cases(), 1000, 64), b(model, mixed_cases(), 1000, 64);
  CallsAgain::Counts counts;
  RecordedSteps recorded(model, b.arena, counting(counts));
  const std::vector<std::vector<size_t>> who = {{0, 1, 2}, {0, 1, 2}, {1},    {1, 2}, {2, 1},
                                                {1, 2},    {0, 1, 2}, {1, 2}, {1, 2}};
  for (size_t step = 0; step < who.size(); ++step) {
    SCOPED_TRACE(step);
    std::vector<Sequence*> of_a, of_b;
    std::vector<int32_t> ids;
    for (const size_t s : who[step]) {
      of_a.push_back(a.all[s]);
      of_b.push_back(b.all[s]);
      ids.push_back(id_of(s, static_cast<int>(step)));
    }
    DecoderPass pass(model, a.arena, of_a, ids);
    pass.run_to(model.config.decoder.num_layers);
    EXPECT_TRUE(at::equal(recorded.step(of_b, ids), pass.finish()));
  }
  EXPECT_GE(counts.launches, 1);
}

// Whole answers through a schedule that records; what it recorded.
CallsAgain::Counts expect_same_answers(const std::vector<Case>& cases) {
  const LoadedModel& model = test::tiny_llava();
  std::vector<Request> batch;
  for (const Case& c : cases) {
    Request& request = batch.emplace_back();
    request.prompt = test::in_context_prompt(c.shots);
    request.policy = c.policy;
    request.options.max_new_tokens = 9 + 5 * c.shots;
    request.options.ignore_eos = true;
  }
  const std::vector<Result> launched = generate(model, batch);
  CallsAgain::Counts counts;
  std::vector<Result> results(batch.size());
  Schedule schedule(model, {.make_graph = counting(counts), .on_done = [&](std::unique_ptr<RequestRun> run) {
                              ASSERT_TRUE(run->result.has_value());
                              results[run->index] = *run->result;
                            }});
  const auto call = std::make_shared<Call>(Callbacks());
  const c10::InferenceMode no_gradients;
  for (size_t i = 0; i < batch.size(); ++i) schedule.admit(std::make_unique<RequestRun>(model, batch[i], i, call));
  while (!schedule.is_idle()) schedule.step();
  for (size_t i = 0; i < batch.size(); ++i) EXPECT_EQ(results[i].token_ids, launched[i].token_ids) << i;
  return counts;
}

TEST(RecordedSteps, AnswersAreTheSame) {
  EXPECT_GE(expect_same_answers(mixed_cases()).launches, 5);
}

// As long as one of the batch has a policy that is asked again: here the one that ends first.
TEST(RecordedSteps, StepAsideForPoliciesThatAreAskedAgain) {
  const int alone = expect_same_answers({{1, "none"}}).launches;
  const int beside = expect_same_answers({{1, "none"}, {0, "visionpulse"}}).launches;
  EXPECT_GT(beside, 0);
  EXPECT_LT(beside, alone);
  EXPECT_EQ(expect_same_answers({{1, "persistence:keep_ratio=1/2,every=3"}}).launches, 0);
}

}  // namespace
}  // namespace espalier
