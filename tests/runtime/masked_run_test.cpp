// SPDX-License-Identifier: Apache-2.0
// The masked-run oracle on the tiny LLaVA-1.5 checkpoint: every site, every built-in policy, packed requests.
#include "tests/runtime/masked_run.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "espalier/policies/fitprune.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Answered;
using test::tiny_llava;

std::shared_ptr<const PruningPolicy> random_keep(std::vector<ActPoint> points, double share, uint32_t seed,
                                                 Positions positions = Positions::kKeep) {
  return std::make_shared<test::RandomKeep>(std::move(points), share, seed, tiny_llava().facts.num_kv_heads, positions);
}

Sequence sequence_for(const Prompt& prompt, PolicyPtr policy) {
  return test::sequence_for(tiny_llava(), prompt, std::move(policy));
}

std::vector<Answered> run_packed(std::vector<Sequence>& sequences, int new_tokens) {
  return test::run_packed(tiny_llava(), sequences, new_tokens);
}

void expect_equals_masked_run(const Prompt& prompt, const Sequence& sequence, const Answered& run) {
  test::expect_equals_masked_run(tiny_llava(), prompt, sequence, run);
}

class MaskedRunTest : public testing::TestWithParam<std::vector<ActPoint>> {};

TEST_P(MaskedRunTest, DroppingEqualsMasking) {
  const Prompt prompt = test::in_context_prompt(2);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, random_keep(GetParam(), 0.6, 5)));
  const std::vector<Answered> runs = run_packed(sequences, 17);
  expect_equals_masked_run(prompt, sequences[0], runs[0]);
}

TEST_P(MaskedRunTest, DroppingAllEqualsMaskingAll) {
  const Prompt prompt = test::in_context_prompt(1);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, random_keep(GetParam(), 0.0, 5)));
  const std::vector<Answered> runs = run_packed(sequences, 4);
  expect_equals_masked_run(prompt, sequences[0], runs[0]);
}

INSTANTIATE_TEST_SUITE_P(Sites, MaskedRunTest, testing::ValuesIn(test::point_lists()),
                         [](const auto& instance) { return test::name_of_points(instance.param); });

TEST(MaskedRun, BuiltInPolicies) {
  std::vector<std::string> specs = test::selecting_examples();
  specs.emplace_back("catp:keep_ratio=2/3,stage1_share=1 + atp:theta_r=0.3,theta_s=0.5");
  for (const std::string& spec : specs) {
    SCOPED_TRACE(spec);
    const Prompt prompt = test::in_context_prompt(4);
    std::vector<Sequence> sequences;
    sequences.push_back(sequence_for(prompt, test::make_example(spec)));
    const std::vector<Answered> runs = run_packed(sequences, 17);
    expect_equals_masked_run(prompt, sequences[0], runs[0]);
  }
}

TEST(MaskedRun, FitpruneRecipe) {
  const Prompt prompt = test::in_context_prompt(2);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, make_fitprune({.recipe = {"made-up", 16, {3, 0, 4, 2, 0, 1, 3, 2}}})));
  const std::vector<Answered> runs = run_packed(sequences, 17);
  expect_equals_masked_run(prompt, sequences[0], runs[0]);
}

// Different prompts, image counts and policies in one packed prefill and one decode loop.
TEST(MaskedRun, PackedSequencesEqualEachAlone) {
  const std::vector<std::pair<Prompt, const char*>> requests = {
      {test::in_context_prompt(4), "catp:keep_ratio=2/9"},
      {RawPrompt{"USER: How are you? Count: 1, 2, 3. ASSISTANT:", {}, {}}, "fastv:keep_ratio=1/2"},
      {test::in_context_prompt(0), "none"},
      {test::in_context_prompt(2), "random:keep_ratio=1/3"},
      {test::in_context_prompt(1), "fastv:keep_ratio=1/8,layer=4"}};
  std::vector<Sequence> packed;
  for (const auto& [prompt, spec] : requests) packed.push_back(sequence_for(prompt, make_policy(spec)));
  const std::vector<Answered> together = run_packed(packed, 17);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(requests[i].second);
    expect_equals_masked_run(requests[i].first, packed[i], together[i]);
    std::vector<Sequence> alone;
    alone.push_back(sequence_for(requests[i].first, make_policy(requests[i].second)));
    const Answered single = run_packed(alone, 17)[0];
    EXPECT_EQ(single.answer, together[i].answer);
    EXPECT_EQ(alone[0].walk.kept_sources(), packed[i].walk.kept_sources());
  }
}

TEST(MaskedRun, KeepingEverythingChangesNoBit) {
  const Prompt prompt = test::in_context_prompt(3);
  std::vector<Sequence> plain;
  plain.push_back(sequence_for(prompt, make_policy("none")));
  const Answered expected = run_packed(plain, 6)[0];
  for (const char* spec :
       {"random:keep_ratio=1", "fastv:keep_ratio=1", "fastv:keep_ratio=1,layer=5,rows=all,pool=image",
        "catp:keep_ratio=1", "catp:keep_ratio=1,k=2,delta_norm=max", "fastv:num_kept=9999"}) {
    SCOPED_TRACE(spec);
    std::vector<Sequence> kept;
    kept.push_back(sequence_for(prompt, make_policy(spec)));
    const Answered run = run_packed(kept, 6)[0];
    ASSERT_EQ(run.answer, expected.answer);
    for (size_t i = 0; i < run.logits.size(); ++i) EXPECT_TRUE(run.logits[i].equal(expected.logits[i])) << "step " << i;
  }
}

// With positions=compact a run that drops before the decoder is the plain decoder on the shorter sequence, renumbered.
TEST(MaskedRun, CompactPositionsEqualTheShorterSequence) {
  const c10::InferenceMode no_gradients;
  const Prompt prompt = test::in_context_prompt(2);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, random_keep({{Site::kProjectorOutput}}, 0.5, 3, Positions::kCompact)));
  const Answered run = run_packed(sequences, 9)[0];
  const at::Tensor hidden =
      test::unpruned_hidden(tiny_llava(), prompt).index_select(0, sequences[0].walk.layout().source_index);
  const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
  const int64_t n = hidden.size(0);
  const test::Dropped nothing{std::vector<int>(n, 8), {}};
  const at::Tensor expected =
      test::masked_logits(tiny_llava(), hidden, at::arange(n, at::kLong), n, nothing, fed).slice(0, n - 1);
  for (size_t step = 0; step < run.logits.size(); ++step) {
    const at::Tensor reference = expected[static_cast<int64_t>(step)];
    EXPECT_LT((run.logits[step].to(at::kDouble) - reference).abs().max().item<double>(),
              5e-5 * reference.pow(2).mean().sqrt().item<double>());
  }
}

}  // namespace
}  // namespace espalier
