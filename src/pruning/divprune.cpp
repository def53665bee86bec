// SPDX-License-Identifier: Apache-2.0
// DivPrune: "Diversity-based Visual Token Pruning" (arXiv 2503.02175), as docs/specs/divprune.md reads it.
//   E      image tokens of `hidden` at the projector's output
//   D      ops::max_min_select's distance
//   ratio  keep_ratio
//   P_t    the first t picks
//   keep   num_kept of the image
// The greedy choice of Algorithm 1; the paper calls it exact, which it is not. Differences from the released code:
//   - picked tokens are masked (the code can pick a duplicate twice);
//   - the nearest neighbour of the first pick is never the token itself, norms have a floor, distances are float32;
//   - every image of a request is chosen from; positions are kept unless positions=compact says otherwise;
//   - pinned tokens are the first picks; what follows keeps its distance from them.
#include "espalier/policies/divprune.h"

#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = DivpruneOptions;

std::vector<Step> steps(const O& o, const ModelFacts&, const PromptLayout&) {
  return {{.at = {Site::kProjectorOutput},
           .scope = Scope::kImage,
           .budget = {.pool = Budget::Pool::kImage, .amount = o.amount},
           .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
           .decide =
               [distance = o.distance](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                 const at::Tensor features = ops::gather_rows(signals[0], layout.image_tokens);
                 return Verdict{.choose = [distance, features](const Pools& images) {
                   return Choice{ops::max_min_select(features, int64_tensor(images.begin),
                                                     int64_tensor(images.num_kept), distance, images.always)};
                 }};
               }}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "divprune",
      .options = {keep_ratio(&O::amount),
                  num_kept(&O::amount),
                  {"distance",
                   &O::distance,
                   {{"cosine", ops::Distance::kCosine}, {"l1", ops::Distance::kL1}, {"l2", ops::Distance::kL2}},
                   "how far apart two tokens are: cosine, l1, l2"},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_divprune(const DivpruneOptions& options) {
  return make(method(), options);
}

PolicyRow divprune_row() {
  return row(method(),
             {.paper = "arXiv 2503.02175",
              .summary = "each image keeps the tokens that lie farthest apart",
              .sites = {Site::kProjectorOutput},
              .needs = "projected tokens",
              .refusal = any_model,
              .examples = {{"divprune:keep_ratio=1/3"}, {"divprune:num_kept=4,distance=l2,row_breaks=follow"}}});
}

}  // namespace espalier
