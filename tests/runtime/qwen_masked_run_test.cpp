// SPDX-License-Identifier: Apache-2.0
// The masked-run oracle on the tiny Qwen2.5-VL checkpoint: what stays keeps its three-part position ids, whatever was
// dropped where, and decoding goes on behind the largest of them.
#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/runtime/masked_run.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/made_up_files.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Answered;

const LoadedModel& model() {
  return test::tiny_model("qwen25vl");
}

Sequence sequence_for(const Prompt& prompt, PolicyPtr policy) {
  return test::sequence_for(model(), prompt, std::move(policy));
}

// Pictures of different sizes, texts between them, and one picture among others in a turn.
Chat prompt_of(int shots) {
  Chat chat = test::in_context_prompt(shots);
  chat.messages.back().content.emplace_back(ImagePart{.image = test::picture(150, 40, 7), .pins = {}});
  chat.messages.back().content.emplace_back(TextPart{" Or here?"});
  return chat;
}

Answered run_alone(const Prompt& prompt, Sequence sequence, int new_tokens) {
  std::vector<Sequence> sequences;
  sequences.push_back(std::move(sequence));
  const Answered run = test::run_packed(model(), sequences, new_tokens)[0];
  test::expect_equals_masked_run(model(), prompt, sequences[0], run);
  return run;
}

class QwenMaskedRunTest : public testing::TestWithParam<std::vector<ActPoint>> {};

TEST_P(QwenMaskedRunTest, DroppingEqualsMasking) {
  const Prompt prompt = prompt_of(2);
  for (const double share : {0.6, 0.0}) {
    SCOPED_TRACE(share);
    run_alone(
        prompt,
        sequence_for(prompt, std::make_shared<test::RandomKeep>(GetParam(), share, 5, model().facts.num_kv_heads)), 7);
  }
}

INSTANTIATE_TEST_SUITE_P(Sites, QwenMaskedRunTest, testing::ValuesIn(test::point_lists()),
                         [](const auto& instance) { return test::name_of_points(instance.param); });

TEST(QwenMaskedRun, BuiltInPolicies) {
  std::vector<std::string> specs =
      test::examples_where([](const PolicyEntry& entry, const PolicyExample& example) {
        return example.keeps_tokens && (entry.name == "fitprune" || entry.refusal(model().facts).empty());
      });
  specs.emplace_back("catp:keep_ratio=2/9 + fastv:keep_ratio=1/9,layer=6");
  for (const std::string& spec : specs) {
    SCOPED_TRACE(spec);
    const Prompt prompt = prompt_of(4);
    run_alone(prompt, sequence_for(prompt, test::make_example(spec)), 9);
  }
}

// Also a prompt without pictures: its position ids have three parts like those of the others.
TEST(QwenMaskedRun, PackedSequencesEqualEachAlone) {
  const std::vector<std::pair<Prompt, const char*>> requests = {
      {prompt_of(3), "catp:keep_ratio=2/9"},
      {RawPrompt{"How are you? Count: 1, 2, 3.", {}, {}}, "fastv:keep_ratio=1/2"},
      {prompt_of(0), "none"},
      {prompt_of(1), "fastv:keep_ratio=1/8,layer=4"}};
  std::vector<Sequence> packed;
  for (const auto& [prompt, spec] : requests) packed.push_back(sequence_for(prompt, make_policy(spec)));
  const std::vector<Answered> together = test::run_packed(model(), packed, 9);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(requests[i].second);
    test::expect_equals_masked_run(model(), requests[i].first, packed[i], together[i]);
    const Answered alone =
        run_alone(requests[i].first, sequence_for(requests[i].first, make_policy(requests[i].second)), 9);
    EXPECT_EQ(alone.answer, together[i].answer);
  }
}

TEST(QwenMaskedRun, KeepingEverythingChangesNoBit) {
  const Prompt prompt = prompt_of(2);
  const Answered expected = run_alone(prompt, sequence_for(prompt, make_policy("none")), 6);
  for (const char* spec : {"random:keep_ratio=1", "fastv:keep_ratio=1", "catp:keep_ratio=1", "divprune:keep_ratio=1",
                           "fastv:num_kept=9999"}) {
    SCOPED_TRACE(spec);
    const Answered run = run_alone(prompt, sequence_for(prompt, make_policy(spec)), 6);
    ASSERT_EQ(run.answer, expected.answer);
    for (size_t i = 0; i < run.logits.size(); ++i) EXPECT_TRUE(run.logits[i].equal(expected.logits[i])) << "step " << i;
  }
}

// Survivors carry all three parts of their ids with them.
TEST(QwenMaskedRun, SurvivorsKeepTheirPositionIds) {
  const Prompt prompt = prompt_of(2);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, make_policy("random:keep_ratio=1/3,seed=2")));
  test::run_packed(model(), sequences, 1);
  const TokenLayout& left = sequences[0].walk.layout();
  const PromptLayout& before = *sequences[0].prompt.layout;
  ASSERT_LT(left.num_tokens(), before.num_tokens);
  ASSERT_EQ(before.position_id.size(0), 3);
  test::expect_same(left.position_id, before.position_id.index_select(1, left.source_index));
}

TEST(QwenMaskedRun, CompactPositionsAreRefused) {
  const std::string message = test::message_of<Error>(
      [] { sequence_for(prompt_of(0), make_policy("fastv:keep_ratio=1/2,positions=compact")); });
  test::expect_says(message, {"fastv", "positions=compact is not possible with three-part position ids"});
}

}  // namespace
}  // namespace espalier
