// SPDX-License-Identifier: Apache-2.0
#include "tests/runtime/masked_run.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/tril.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "model/decoder.h"
#include "runtime/decoder_pass.h"
#include "runtime/encode.h"
#include "tests/support/reference_decoder.h"
#include "tests/support/tensors.h"

namespace espalier::test {

namespace {

// Row breaks that follow their row and lose its last patch between `before` and `after`, both ascending. The row of a
// break is what stands between it and the break before, or the full view.
std::vector<int64_t> row_breaks_that_leave(const PromptLayout& layout, const std::vector<int64_t>& after) {
  std::vector<int64_t> leave;
  bool row_has_patch = false;
  for (const Segment& s : layout.segments) {
    if (s.kind == Segment::Kind::kPatches && s.crop == 0) row_has_patch = false;
    if (s.kind == Segment::Kind::kPatches && s.crop > 0)
      for (int64_t t = s.begin; t < s.end; ++t) row_has_patch |= std::ranges::binary_search(after, t);
    if (s.kind != Segment::Kind::kRowBreak) continue;
    if (!row_has_patch) leave.push_back(s.begin);
    row_has_patch = false;
  }
  return leave;
}

Dropped dropped_by(const Sequence& sequence, int num_layers) {
  const PromptLayout& layout = *sequence.prompt.layout;
  const bool row_breaks_compete = sequence.walk.policy().row_breaks_compete();
  Dropped dropped{std::vector<int>(layout.num_tokens, num_layers), {}};
  const std::vector<int64_t> image = [&] {
    const at::Tensor tokens = full_layout(sequence.prompt.layout, row_breaks_compete).image_tokens;
    return std::vector<int64_t>(tokens.const_data_ptr<int64_t>(), tokens.const_data_ptr<int64_t>() + tokens.numel());
  }();
  std::vector<int64_t> alive = image;
  std::map<int, std::vector<int64_t>> cached;  // by layer: alive when its cache was cut
  for (const PointTrace& p : sequence.walk.trace(false)) {
    if (p.site == "cache") {
      if (p.generated == 0) cached[p.layer] = alive;
      for (size_t g = 0; g < p.kept_per_head.size(); ++g) {
        std::vector<int64_t>& gone = dropped.from_cache[{p.layer, static_cast<int>(g)}][p.generated];
        for (const int64_t t : cached.at(p.layer))
          if (!std::ranges::binary_search(p.kept_per_head[g], t)) gone.push_back(t);
      }
      continue;
    }
    const int from = p.site == "before_layer" ? p.layer : p.site == "after_attention" ? p.layer + 1 : 0;
    for (const int64_t t : alive)
      if (!std::ranges::binary_search(p.kept, t)) dropped.first_gone[t] = from;
    if (!row_breaks_compete && p.kept.size() < alive.size())
      for (const int64_t t : row_breaks_that_leave(layout, p.kept))
        dropped.first_gone[t] = std::min(dropped.first_gone[t], from);
    alive = p.kept;
  }
  return dropped;
}

}  // namespace

std::vector<Step> RandomKeep::steps(const ModelFacts&, const PromptLayout&) const {
  std::vector<Step> steps;
  for (const ActPoint& point : points_)
    steps.push_back({.at = point, .decide = [this, point](const TokenLayout& layout, std::span<const at::Tensor>) {
                       return decide(point, layout);
                     }});
  return steps;
}

std::vector<Step> RandomKeepAgain::steps(const ModelFacts&, const PromptLayout&) const {
  std::vector<Step> steps;
  for (const int layer : layers_) {
    const auto draw = std::make_shared<std::mt19937>(seed_ + 31 * static_cast<uint32_t>(layer));
    Step step{.at = {Site::kCache, layer}};
    step.budget.is_adaptive = true;
    step.every = every_;
    step.revives = revives_;
    step.decide = [heads = num_kv_heads_, draw](const TokenLayout& layout, std::span<const at::Tensor>) {
      const int64_t m = layout.num_image_tokens();
      std::vector<float> scores(static_cast<size_t>(heads * m));
      for (float& s : scores) s = static_cast<float>((*draw)() % 100003);
      const auto k = static_cast<int64_t>((*draw)() % static_cast<uint64_t>(m + 1));
      return Verdict{.scores = at::tensor(scores, at::kFloat).view({heads, m}), .num_kept = {k}};
    };
    steps.push_back(std::move(step));
  }
  return steps;
}

Verdict RandomKeep::decide(const ActPoint& point, const TokenLayout& layout) const {
  std::mt19937 draw(seed_ + 31 * point.layer + 7 * static_cast<uint32_t>(point.site));
  const int64_t m = layout.num_image_tokens(), k = static_cast<int64_t>(share_ * double(m));
  const int heads = point.site == Site::kCache ? num_kv_heads_ : 1;
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

std::string name_of_points(const std::vector<ActPoint>& points) {
  std::string name;
  for (const ActPoint& p : points) name += std::string(name_of(p.site)) + std::to_string(p.layer) + "_";
  return name;
}

at::Tensor masked_logits(const LoadedModel& model, const at::Tensor& hidden, const at::Tensor& position_id,
                         int64_t next_position, const Dropped& dropped, const std::vector<int32_t>& answer) {
  const int64_t n = hidden.size(0), total = n + std::ssize(answer);
  const at::Tensor ids = at::tensor(std::vector<int64_t>(answer.begin(), answer.end()), at::kLong);
  const at::Tensor all = at::cat({hidden, embed_tokens(model.weights.decoder, ids)});
  at::Tensor behind = at::arange(next_position, next_position + std::ssize(answer), at::kLong);
  if (position_id.dim() == 2) behind = behind.expand({3, -1});
  const at::Tensor position = at::cat({position_id, behind}, -1);
  const int64_t window = model.config.decoder.sliding_window;
  const auto visible = [&](int layer, int kv_head) {
    at::Tensor mask = at::ones({total, total}, at::kBool).tril();
    if (window > 0) mask = mask & (position.unsqueeze(1) - position.unsqueeze(0) < window);
    for (int64_t t = 0; t < n; ++t)
      if (dropped.first_gone[t] <= layer) mask.select(1, t).fill_(false);
    const at::Tensor in_stream = mask.clone();
    if (const auto gone = dropped.from_cache.find({layer, kv_head}); gone != dropped.from_cache.end())
      for (const auto& [generated, tokens] : gone->second) {
        const int64_t first = generated == 0 ? n : n + generated - 1;
        mask.slice(0, first).copy_(in_stream.slice(0, first));  // what was held comes back
        for (const int64_t t : tokens) mask.slice(0, first).select(1, t).fill_(false);
      }
    for (int64_t t = 0; t < n; ++t)
      mask[t][t] = true;  // rows of dropped tokens need something to look at; nobody reads them
    return mask;
  };
  // The extra diagonal must not let a dropped token back in for others: it only serves its own row.
  return reference_logits(model.config.decoder, model.weights.decoder, all, position, visible);
}

Sequence sequence_for(const LoadedModel& model, const Prompt& prompt, PolicyPtr policy) {
  return {model, pack_prompt(model, prompt, 32), std::move(policy)};
}

std::vector<Answered> run_packed(const LoadedModel& model, std::vector<Sequence>& sequences, int new_tokens) {
  const c10::InferenceMode no_gradients;
  std::vector<Sequence*> all;
  for (Sequence& s : sequences) {
    encode(model, s);
    all.push_back(&s);
  }
  KvArena arena(model.config.decoder, model.dtype, model.device);
  DecoderPass prefill(model, arena, all);
  prefill.run_to(model.config.decoder.num_layers);
  for (const DecoderPass::Failure& failure : prefill.take_failures()) std::rethrow_exception(failure.error);
  at::Tensor rows = prefill.finish();
  std::vector<Answered> runs(sequences.size());
  for (int step = 0; step < new_tokens; ++step) {
    std::vector<int32_t> ids;
    for (size_t s = 0; s < runs.size(); ++s) {
      runs[s].logits.push_back(rows[static_cast<int64_t>(s)].clone());
      ids.push_back(static_cast<int32_t>(rows[static_cast<int64_t>(s)].argmax().item<int64_t>()));
      runs[s].answer.push_back(ids.back());
    }
    if (step + 1 == new_tokens) break;
    DecoderPass next(model, arena, all, ids);
    next.run_to(model.config.decoder.num_layers);
    rows = next.finish();
    for (const DecoderPass::Failure& failure : next.take_failures()) std::rethrow_exception(failure.error);
  }
  for (Sequence& s : sequences) s.kv = SequenceKv(0);  // rows of an arena that ends here
  return runs;
}

at::Tensor unpruned_hidden(const LoadedModel& model, const Prompt& prompt) {
  const c10::InferenceMode no_gradients;
  Sequence plain = sequence_for(model, prompt, make_policy("none"));
  encode(model, plain);
  return plain.stream.hidden.clone();
}

void expect_equals_masked_run(const LoadedModel& model, const Prompt& prompt, const Sequence& sequence,
                              const Answered& run) {
  const c10::InferenceMode no_gradients;
  const PromptLayout& layout = *sequence.prompt.layout;
  const std::vector<int32_t> fed(run.answer.begin(), run.answer.end() - 1);
  const at::Tensor expected =
      masked_logits(model, unpruned_hidden(model, prompt), layout.position_id, sequence.prompt.next_position,
                    dropped_by(sequence, model.facts.num_layers), fed)
          .slice(0, layout.num_tokens - 1);
  ASSERT_EQ(expected.size(0), std::ssize(run.logits));
  for (size_t step = 0; step < run.logits.size(); ++step) {
    const at::Tensor reference = expected[static_cast<int64_t>(step)];
    const double rms = reference.pow(2).mean().sqrt().item<double>();
    const double error = (run.logits[step].to(at::kDouble) - reference).abs().max().item<double>() / rms;
    EXPECT_LT(error, 5e-5) << "step " << step;
  }
}

}  // namespace espalier::test
