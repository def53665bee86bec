// SPDX-License-Identifier: Apache-2.0
// VisPruner: "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs" (arXiv
// 2412.01818), as docs/specs/vispruner.md reads it.
//   T      num_kept of the crop
//   r      important_ratio
//   T_imp  important patches, T_div diverse ones
//   a      the class probe, mean over heads
//   x      kVisionOutput
//   R      what is left beside the important ones, a list whose order the rounds change
// Differences from the released code:
//   - a list of odd length is split, too (the code fails); a round never drops more than it judges;
//   - what un-padding cuts away is absent before the choice; a row break stays while a patch of its row does;
//   - pinned tokens are important;
//   - positions are kept unless positions=compact says otherwise.
// The number of rounds is known from the counts alone: nothing waits.
#include "espalier/policies/vispruner.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <limits>

#include "espalier/ops.h"
#include "pruning/built_in.h"
#include "pruning/each_pool.h"

namespace espalier {

namespace {

using O = VisprunerOptions;

// Indices of the `number` rows of x that stay. In each round the first, third, fifth … of the list look for their
// likeness among the others, and those that come closest leave; what stays of them goes in front, by falling likeness.
at::Tensor diverse(const at::Tensor& x, int64_t number, int64_t per_round) {
  at::Tensor list = at::arange(x.size(0), x.options().dtype(at::kLong));
  if (number == 0) return list.slice(0, 0, 0);
  const at::Tensor cosine = ops::pairwise_cosine(x, x);
  while (list.size(0) > number) {
    const at::Tensor judged = list.slice(0, 0, list.size(0), 2), others = list.slice(0, 1, list.size(0), 2);
    const int64_t leave = std::min({per_round, list.size(0) - number, judged.size(0)});
    const at::Tensor likeness = cosine.index_select(0, judged).index_select(1, others).amax(1);
    const at::Tensor order = likeness.argsort(/*stable=*/true, 0, /*descending=*/true);
    list = at::cat({judged.index_select(0, order.slice(0, leave)), others});
  }
  return list;
}

// attention float32 [patches], output [patches, d_v].
Choice choose(const O& o, const at::Tensor& attention, const at::Tensor& output, const std::vector<CropFacts>& facts,
              const Pools& crops) {
  return choose_in_each(crops, [&](const Pool& crop) {
    const int64_t number = crop.num_kept;
    const int64_t important = std::max(rounded_share(o.important_ratio, number, Rounding::kFloor),
                                       std::min(facts[crop.number].pinned, number));
    const at::Tensor looks =
        attention.index_select(0, crop.own).masked_fill(crop.always, std::numeric_limits<float>::infinity());
    const at::Tensor ranked = crop.own.index_select(0, looks.argsort(/*stable=*/true, 0, /*descending=*/true));
    const at::Tensor others = ranked.slice(0, important);
    const at::Tensor diverse_ones = diverse(output.index_select(0, others), number - important, o.per_round);
    return at::cat({ranked.slice(0, 0, important), others.index_select(0, diverse_ones)});
  });
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  const int layer = o.layer_attention.value_or(model.vision_feature_layer);
  check_vision_layer("vispruner", layer, model);
  return {
      {.at = {Site::kVisionOutput},
       .scope = Scope::kCrop,
       .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount},
       .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
         return {AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass}, Tap{Tap::What::kVisionOutput}};
       },
       .decide =
           [o](const TokenLayout& layout, std::span<const at::Tensor> signals) {
             const at::Tensor attention = signals[0].to(at::kFloat);
             const at::Tensor& output = signals[1];
             const std::vector<CropFacts> facts = crops_of(*layout.prompt);
             return Verdict{.scores = attention,
                            .choose = [=](const Pools& crops) { return choose(o, attention, output, facts, crops); }};
           },
       .is_nested = false}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "vispruner",
      .options = {keep_ratio(&O::amount, "part of each crop that stays, a/b or a decimal; this or num_kept"),
                  num_kept(&O::amount, "number of each crop that stays; this or keep_ratio"),
                  {"important_ratio", &O::important_ratio, "part of these that class attention chooses", kShare},
                  {"per_round", &O::per_round, "near duplicates that leave at most in each round", at_least(1)},
                  {"layer_attention", &O::layer_attention,
                   "vision layer of class attention; the one the projector reads", at_least(0)}},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_vispruner(const VisprunerOptions& options) {
  return make(method(), options);
}

PolicyRow vispruner_row() {
  return row(method(),
             {.paper = "arXiv 2412.01818",
              .summary = "each crop keeps what the class token looks at and, of the rest, patches that differ",
              .sites = {Site::kVisionOutput},
              .needs = "class attention of one vision layer",
              .refusal = needs_class_token,
              .examples = {{"vispruner:keep_ratio=1/2,per_round=2"}, {"vispruner:num_kept=5,important_ratio=1/5"}}});
}

}  // namespace espalier
