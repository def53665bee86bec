// SPDX-License-Identifier: Apache-2.0
// HiPrune: "Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models" (arXiv
// 2508.00553), as docs/specs/hiprune.md reads it.
//   N'      num_kept of the crop
//   l       layer_object; a_l its class probe, mean over heads
//   a_L     the class probe of layer_deep
//   k       anchors: N'·alpha / 5
// Differences from the released code:
//   - attention is the class row's; the code takes the mean over all rows, which no signal offers;
//   - buffers are neighbours on the crop's grid, and none where the grid ends (the code counts on in the row before or
//     behind, and clamps at the ends);
//   - buffers that do not fit are left out, those that the object layer looks at least first (the code fails);
//   - what un-padding cuts away is absent before the choice; a row break stays while a patch of its row does;
//   - pinned tokens stay before all others; positions are kept unless positions=compact says otherwise.
#include "espalier/policies/hiprune.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/each_pool.h"

namespace espalier {

namespace {

using O = HipruneOptions;

int object_layer(const O& o, const ModelFacts& model) {  // 8, the ninth, of CLIP's 24
  return o.layer_object.value_or(std::max(1, model.vision_layers * 3 / 8) - 1);
}
int deep_layer(const O& o, const ModelFacts& model) {
  return o.layer_deep.value_or(model.vision_feature_layer);
}

// Place of each value among all, the largest first; ties to the lower index. int64 [n].
at::Tensor rank_of(const at::Tensor& values) {
  return values.argsort(/*stable=*/true, 0, /*descending=*/true).argsort(/*stable=*/true, 0, /*descending=*/false);
}

// Which patches of a crop stand beside one of `chosen` (indices) on its grid. row, col int64 [n] -> bool [n].
at::Tensor stands_beside(const at::Tensor& row, const at::Tensor& col, const at::Tensor& chosen) {
  const auto steps = [&](const at::Tensor& place) {
    return (place.index_select(0, chosen).unsqueeze(1) - place.unsqueeze(0)).abs();
  };
  return (steps(row) + steps(col) == 1).any(0);
}

// Of all image tokens: what the two layers look at, float32 [m], and the place in the crop, int64 [m].
struct Patches {
  at::Tensor object, deep, row, col;
};

Choice choose(Fraction alpha, const Patches& patches, const Pools& crops) {
  return choose_in_each(crops, [&](const Pool& crop) {
    const int64_t n = crop.own.size(0);
    const auto of_crop = [&](const at::Tensor& fact) { return fact.index_select(0, crop.own); };
    const int64_t k = std::min(n, rounded_share({alpha.num, 5 * alpha.den}, crop.num_kept, Rounding::kNearestEven));
    const at::Tensor object = rank_of(of_crop(patches.object)), deep = rank_of(of_crop(patches.deep));
    const at::Tensor is_anchor = object < k;
    const at::Tensor anchors = indices_of(is_anchor, k);
    const at::Tensor is_buffer = stands_beside(of_crop(patches.row), of_crop(patches.col), anchors);
    // Anchors, buffers, all others, each by their own attention.
    const at::Tensor order = at::where(is_anchor, object, at::where(is_buffer, object + n, deep + 2 * n));
    const at::Tensor best = order.masked_fill(crop.always, -1).argsort(/*stable=*/true, 0, /*descending=*/false);
    return crop.own.index_select(0, best.slice(0, 0, crop.num_kept));
  });
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  const int object = object_layer(o, model), deep = deep_layer(o, model);
  for (const int layer : {object, deep}) check_vision_layer("hiprune", layer, model);
  if (object >= deep)
    throw Error("hiprune: layer_object=" + std::to_string(object) +
                " does not come before layer_deep=" + std::to_string(deep));
  return {{.at = {Site::kVisionOutput},
           .scope = Scope::kCrop,
           .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount},
           .needs = [object, deep](const TokenLayout&) -> std::vector<Signal> {
             return {AttentionProbe{.layer = object, .rows = AttentionProbe::Rows::kClass},
                     AttentionProbe{.layer = deep, .rows = AttentionProbe::Rows::kClass}};
           },
           .decide =
               [alpha = o.alpha](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                 const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).clamp_min(0);
                 const Patches patches{signals[0].to(at::kFloat), signals[1].to(at::kFloat),
                                       layout.prompt->grid_row.index_select(0, source),
                                       layout.prompt->grid_col.index_select(0, source)};
                 return Verdict{.scores = patches.deep, .choose = [alpha, patches](const Pools& crops) {
                                  return choose(alpha, patches, crops);
                                }};
               },
           .is_nested = false}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "hiprune",
      .options = {keep_ratio(&O::amount, "part of each crop that stays, a/b or a decimal; this or num_kept"),
                  num_kept(&O::amount, "number of each crop that stays; this or keep_ratio"),
                  {"alpha", &O::alpha, "part of these for anchors with their four neighbours", kShare},
                  {"layer_object", &O::layer_object,
                   "vision layer whose class attention picks anchors; the last of the first 3/8", at_least(0)},
                  {"layer_deep", &O::layer_deep,
                   "vision layer whose class attention picks the rest; the one the projector reads", at_least(0)}},
      .steps = steps};
  return method;
}

std::string refusal(const ModelFacts& model) {
  if (!model.has_class_token) return needs_class_token(model);
  if (object_layer({}, model) < deep_layer({}, model)) return {};
  return "needs a vision layer before the one that the projector reads, the tower has " +
         std::to_string(model.vision_layers) + " layers";
}

}  // namespace

PolicyPtr make_hiprune(const HipruneOptions& options) {
  return make(method(), options);
}

PolicyRow hiprune_row() {
  return row(method(),
             {.paper = "arXiv 2508.00553",
              .summary = "each crop keeps what a middle vision layer looks at with its neighbours, then a deep one's",
              .sites = {Site::kVisionOutput},
              .needs = "class attention of two vision layers",
              .refusal = refusal,
              .examples = {{"hiprune:keep_ratio=1/2,alpha=3/5"}, {"hiprune:num_kept=4,alpha=1,layer_object=1"}}});
}

}  // namespace espalier
