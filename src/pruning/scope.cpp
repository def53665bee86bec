// SPDX-License-Identifier: Apache-2.0
// SCOPE: "Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs" (arXiv 2510.24214), as
// docs/specs/scope.md reads it.
//   V, S     patches of the crop, those picked so far
//   sim      cosine of kVisionOutput
//   C(S)     coverage: sum over u in V of max over s in S of sim(u, s), or of 0 where that is below
//   g(v)     gain of coverage, C(S + v) - C(S)
//   s_v      saliency: the class probe, mean over heads where the code sums
//   alpha    its exponent
// Differences from the released code:
//   - what un-padding cuts away is absent before the choice; a row break stays while a patch of its row does;
//   - pinned tokens are the first picks; positions are kept unless positions=compact says otherwise.
#include "espalier/policies/scope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "espalier/ops.h"
#include "pruning/built_in.h"
#include "pruning/each_pool.h"

namespace espalier {

namespace {

using O = ScopeOptions;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kRounding = 1e-5;

// Indices of `number` rows of x [n, d] in the order they are picked. weight float32 [n], `first` bool [n]: these are
// picked before all others, in index order.
at::Tensor greedy(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& first, int64_t number) {
  const at::Tensor similarity = ops::pairwise_cosine(x, x);
  at::Tensor covered = at::zeros_like(weight), left = first == first;
  std::vector<at::Tensor> picks = {};
  for (int64_t i = 0; i < number; ++i) {
    const at::Tensor gain = (similarity - covered.unsqueeze(1)).clamp_min(0).sum(0) * weight;
    const at::Tensor ranked = gain.masked_fill(first, kInfinity).masked_fill(left.logical_not(), -kInfinity);
    // Two tokens that only each other would cover gain exactly alike: the first of all within rounding of the best.
    const at::Tensor pick = (ranked >= ranked.max() - kRounding).to(at::kByte).argmax(0, /*keepdim=*/true);
    covered = covered.maximum(similarity.index_select(1, pick).squeeze(1));
    left = left.index_fill(0, pick, false);
    picks.push_back(pick);
  }
  return at::cat(picks);
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  const int layer = o.layer_attention.value_or(model.vision_feature_layer);
  check_vision_layer("scope", layer, model);
  return {
      {.at = {Site::kVisionOutput},
       .scope = Scope::kCrop,
       .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount},
       .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
         return {AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass}, Tap{Tap::What::kVisionOutput}};
       },
       .decide =
           [alpha = o.alpha](const TokenLayout&, std::span<const at::Tensor> signals) {
             const at::Tensor saliency = signals[0].to(at::kFloat);
             const at::Tensor& output = signals[1];
             const auto choose = [weight = saliency.pow(alpha), output](const Pools& crops) {
               return choose_in_each(crops, [&](const Pool& crop) {
                 const auto of_crop = [&](const at::Tensor& fact) { return fact.index_select(0, crop.own); };
                 return crop.own.index_select(0, greedy(of_crop(output), of_crop(weight), crop.always, crop.num_kept));
               });
             };
             return Verdict{.scores = saliency, .choose = choose};
           }}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "scope",
      .options = {keep_ratio(&O::amount, "part of each crop that stays, a/b or a decimal; this or num_kept"),
                  num_kept(&O::amount, "number of each crop that stays; this or keep_ratio"),
                  {"alpha", &O::alpha, "exponent of the class attention; 0: coverage alone", at_least(0)},
                  {"layer_attention", &O::layer_attention,
                   "vision layer of class attention; the one the projector reads", at_least(0)}},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_scope(const ScopeOptions& options) {
  return make(method(), options);
}

PolicyRow scope_row() {
  return row(method(), {.paper = "arXiv 2510.24214",
                        .summary = "each crop keeps patches by class attention times what they add to its coverage",
                        .sites = {Site::kVisionOutput},
                        .needs = "class attention of one vision layer",
                        .refusal = needs_class_token,
                        .examples = {{"scope:keep_ratio=1/3"}, {"scope:num_kept=4,alpha=0.5"}}});
}

}  // namespace espalier
