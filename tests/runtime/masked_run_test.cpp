// SPDX-License-Identifier: Apache-2.0
// The oracle of the whole runtime: with positions kept, dropping tokens at a point equals masking their columns from
// there on, in prefill and in every decoded token. The masked run is the float64 reference of tests/support, which
// knows no policies, caches or packing.
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/tril.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <random>
#include <vector>

#include "espalier/policies/fitprune.h"
#include "espalier/pruning.h"
#include "model/decoder.h"
#include "runtime/decode.h"
#include "runtime/encode.h"
#include "runtime/prefill.h"
#include "tests/support/reference_decoder.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::tiny_llava;

// Keeps a random part of what is alive at each of its points.
class RandomKeep : public PruningPolicy {
 public:
  RandomKeep(std::vector<ActPoint> points, double share, uint32_t seed, Positions positions = Positions::kKeep)
      : points_(std::move(points)), share_(share), seed_(seed), positions_(positions) {}

  std::string spec() const override { return "random_keep"; }
  CommonOptions common() const override { return {.positions = positions_}; }
  std::vector<ActPoint> points(const ModelFacts&, const PromptLayout&) const override { return points_; }
  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }
  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    std::mt19937 draw(seed_ + 31 * point.layer + 7 * static_cast<uint32_t>(point.site));
    const int64_t m = layout.num_image_tokens(), k = static_cast<int64_t>(share_ * double(m));
    const int heads = point.site == Site::kCache ? tiny_llava().facts.num_kv_heads : 1;
    std::vector<at::Tensor> kept;
    for (int h = 0; h < heads; ++h) {
      std::vector<int64_t> order(m);
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), draw);
      order.resize(k);
      std::sort(order.begin(), order.end());
      kept.push_back(int64_tensor(order));
    }
    return {.kept = heads == 1 ? kept[0] : at::stack(kept), .added = {}, .scores = {}, .judged = {}};
  }

 private:
  std::vector<ActPoint> points_;
  double share_;
  uint32_t seed_;
  Positions positions_;
};

// Which keys are there from which layer on, read off the points a run went through.
struct Dropped {
  std::vector<int> first_gone;  // [token]: first layer whose attention lacks it
  std::map<std::pair<int, int>, std::vector<int64_t>>
      from_cache;  // (layer, KV head) -> tokens that decoding does not see
};

Dropped dropped_by(const Sequence& sequence, int num_layers) {
  const int64_t n = sequence.prompt.layout->num_tokens;
  Dropped dropped{std::vector<int>(n, num_layers), {}};
  const std::vector<int64_t> image = [&] {
    const at::Tensor tokens = full_layout(sequence.prompt.layout, false).image_tokens;
    return std::vector<int64_t>(tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + tokens.numel());
  }();
  std::vector<int64_t> alive = image;
  for (const PointTrace& p : sequence.walk.trace(false)) {
    if (p.site == "cache") {
      for (size_t g = 0; g < p.kept_per_head.size(); ++g)
        for (const int64_t t : alive)
          if (!std::ranges::binary_search(p.kept_per_head[g], t))
            dropped.from_cache[{p.layer, static_cast<int>(g)}].push_back(t);
      continue;
    }
    const int from = p.site == "before_layer" ? p.layer : p.site == "after_attention" ? p.layer + 1 : 0;
    for (const int64_t t : alive)
      if (!std::ranges::binary_search(p.kept, t)) dropped.first_gone[t] = from;
    alive = p.kept;
  }
  return dropped;
}

// Prompt and answer as one masked sequence. `hidden` is the decoder's unpruned input.
at::Tensor masked_logits(const at::Tensor& hidden, const Dropped& dropped, const std::vector<int32_t>& answer) {
  const LoadedModel& model = tiny_llava();
  const int64_t n = hidden.size(0), total = n + std::ssize(answer);
  const at::Tensor ids = at::tensor(std::vector<int64_t>(answer.begin(), answer.end()), at::kLong);
  const at::Tensor all = at::cat({hidden, embed_tokens(model.weights.decoder, ids)});
  const auto visible = [&](int layer, int kv_head) {
    at::Tensor mask = at::ones({total, total}, at::kBool).tril();
    for (int64_t t = 0; t < n; ++t)
      if (dropped.first_gone[t] <= layer) mask.select(1, t).fill_(false);
    if (const auto gone = dropped.from_cache.find({layer, kv_head}); gone != dropped.from_cache.end())
      for (const int64_t t : gone->second) mask.slice(0, n).select(1, t).fill_(false);
    for (int64_t t = 0; t < n; ++t)
      mask[t][t] = true;  // rows of dropped tokens need something to look at; nobody reads them
    return mask;
  };
  // The extra diagonal must not let a dropped token back in for others: it only serves its own row.
  return test::reference_logits(model.config.decoder, model.weights.decoder, all, at::arange(total, at::kLong),
                                visible);
}

struct Answered {
  std::vector<int32_t> answer;
  std::vector<at::Tensor> logits;  // one row a step, each [vocab]
};

std::vector<Answered> run_packed(std::vector<Sequence>& sequences, int new_tokens) {
  const c10::InferenceMode no_gradients;
  const LoadedModel& model = tiny_llava();
  for (Sequence& s : sequences) encode(model, s, {});
  KvCache cache;
  at::Tensor rows = prefill(model, sequences, cache, {});
  std::vector<Answered> runs(sequences.size());
  std::vector<size_t> active(sequences.size());
  std::iota(active.begin(), active.end(), 0);
  for (int step = 0; step < new_tokens; ++step) {
    std::vector<int32_t> ids;
    for (size_t s = 0; s < runs.size(); ++s) {
      runs[s].logits.push_back(rows[static_cast<int64_t>(s)].clone());
      ids.push_back(static_cast<int32_t>(rows[static_cast<int64_t>(s)].argmax().item<int64_t>()));
      runs[s].answer.push_back(ids.back());
    }
    if (step + 1 < new_tokens) rows = decode_step(model, sequences, active, ids, cache);
  }
  return runs;
}

Sequence sequence_for(const Prompt& prompt, PolicyPtr policy) {
  return {pack_prompt(tiny_llava(), prompt, 32), std::move(policy), tiny_llava().facts};
}

at::Tensor unpruned_hidden(const Prompt& prompt) {
  const c10::InferenceMode no_gradients;
  Sequence plain = sequence_for(prompt, make_policy("none"));
  encode(tiny_llava(), plain, {});
  return plain.hidden.clone();
}

// 5e-5 of the logits' rms, at the last prompt token and at each decoded one.
void expect_equals_masked_run(const Prompt& prompt, const Sequence& sequence, const Answered& run) {
  const c10::InferenceMode no_gradients;
  const int64_t n = sequence.prompt.layout->num_tokens;
  const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
  const at::Tensor expected =
      masked_logits(unpruned_hidden(prompt), dropped_by(sequence, tiny_llava().facts.num_layers), fed).slice(0, n - 1);
  ASSERT_EQ(expected.size(0), std::ssize(run.logits));
  for (size_t step = 0; step < run.logits.size(); ++step) {
    const at::Tensor reference = expected[static_cast<int64_t>(step)];
    const double rms = reference.pow(2).mean().sqrt().item<double>();
    const double error = (run.logits[step].to(at::kDouble) - reference).abs().max().item<double>() / rms;
    EXPECT_LT(error, 5e-5) << "step " << step;
  }
}

std::vector<std::vector<ActPoint>> point_lists() {
  std::vector<std::vector<ActPoint>> lists = {{{Site::kVisionOutput}}, {{Site::kProjectorOutput}}};
  for (int layer = 0; layer < 8; ++layer)
    for (const Site site : {Site::kBeforeLayer, Site::kAfterAttention, Site::kCache}) lists.push_back({{site, layer}});
  lists.push_back({{Site::kProjectorOutput}, {Site::kBeforeLayer, 3}, {Site::kBeforeLayer, 4}});
  lists.push_back({{Site::kVisionOutput},
                   {Site::kProjectorOutput},
                   {Site::kBeforeLayer, 1},
                   {Site::kCache, 1},
                   {Site::kAfterAttention, 5},
                   {Site::kCache, 6},
                   {Site::kBeforeLayer, 7}});
  return lists;
}

std::string name_of_points(const testing::TestParamInfo<std::vector<ActPoint>>& info) {
  std::string name;
  for (const ActPoint& p : info.param) name += std::string(name_of(p.site)) + std::to_string(p.layer) + "_";
  return name;
}

class MaskedRunTest : public testing::TestWithParam<std::vector<ActPoint>> {};

TEST_P(MaskedRunTest, DroppingEqualsMasking) {
  const Prompt prompt = test::in_context_prompt(2);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, std::make_shared<RandomKeep>(GetParam(), 0.6, 5)));
  const std::vector<Answered> runs = run_packed(sequences, 17);
  expect_equals_masked_run(prompt, sequences[0], runs[0]);
}

TEST_P(MaskedRunTest, DroppingAllEqualsMaskingAll) {
  const Prompt prompt = test::in_context_prompt(1);
  std::vector<Sequence> sequences;
  sequences.push_back(sequence_for(prompt, std::make_shared<RandomKeep>(GetParam(), 0.0, 5)));
  const std::vector<Answered> runs = run_packed(sequences, 4);
  expect_equals_masked_run(prompt, sequences[0], runs[0]);
}

INSTANTIATE_TEST_SUITE_P(Sites, MaskedRunTest, testing::ValuesIn(point_lists()), name_of_points);

TEST(MaskedRun, BuiltInPolicies) {
  for (const char* spec : {"none",
                           "random:keep_ratio=1/4,seed=3",
                           "uniform:keep_ratio=1/4",
                           "vtw:layer=5",
                           "vtw:min_per_image=2",
                           "attention:keep_ratio=1/3,layer=2,rows=own_text",
                           "pyramiddrop",
                           "sparsevlm:keep_ratio=1/2,recycle=false",
                           "dart:keep_ratio=1/3",
                           "dart:num_kept=2,layer=5,text_pivots=1",
                           "plphp",
                           "plphp:keep_ratio=1/2,alpha=0.02,beta=0.01,min_per_image=3",
                           "pyramiddrop:num_kept=20:3,layers=2:6,rank=previous",
                           "fastv:keep_ratio=1/4,layer=3",
                           "fastv:num_kept=5,layer=1,rows=all",
                           "catp:keep_ratio=2/9",
                           "catp:keep_ratio=1/3,k=4,stage1_share=0",
                           "catp:keep_ratio=1/9,stage1_share=1",
                           "divprune:keep_ratio=1/3",
                           "cdpruner:keep_ratio=1/4",
                           "hired:keep_ratio=1/4"}) {
    SCOPED_TRACE(spec);
    const Prompt prompt = test::in_context_prompt(4);
    std::vector<Sequence> sequences;
    sequences.push_back(sequence_for(prompt, make_policy(spec)));
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
  sequences.push_back(sequence_for(prompt, std::make_shared<RandomKeep>(std::vector<ActPoint>{{Site::kProjectorOutput}},
                                                                        0.5, 3, Positions::kCompact)));
  const Answered run = run_packed(sequences, 9)[0];
  const at::Tensor hidden = unpruned_hidden(prompt).index_select(0, sequences[0].walk.layout().source_index);
  const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
  Dropped nothing{std::vector<int>(hidden.size(0), 8), {}};
  const at::Tensor expected = masked_logits(hidden, nothing, fed).slice(0, hidden.size(0) - 1);
  for (size_t step = 0; step < run.logits.size(); ++step) {
    const at::Tensor reference = expected[static_cast<int64_t>(step)];
    EXPECT_LT((run.logits[step].to(at::kDouble) - reference).abs().max().item<double>(),
              5e-5 * reference.pow(2).mean().sqrt().item<double>());
  }
}

}  // namespace
}  // namespace espalier
