// SPDX-License-Identifier: Apache-2.0
// Uniformly random subsets of each image's tokens; no paper of its own (ablations of FastV, arXiv 2403.06764, and
// DivPrune, 2503.02175), as docs/specs/random.md says it.
//   keep    num_kept
//   N       tokens of the image
//   stream  ordinal of the image
//   sigma   SplitMix64::of_stream
// Differences from what others run:
//   - the set is drawn once per request and stays fixed while decoding (FastV's K = 0 variant shuffles in every step);
//   - pinned tokens are kept first, the draw fills the rest.
#include "espalier/policies/random.h"

#include <ATen/ops/empty.h>

#include <numeric>

#include "base/random.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

// The order in which the shuffle draws n tokens; the first k of it are the set of size k.
std::vector<int64_t> draw_order(int64_t n, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  SplitMix64 generator = SplitMix64::of_stream(seed, stream);
  for (int64_t i = 0; i < n; ++i)
    std::swap(order[i], order[i + static_cast<int64_t>(generator.below(static_cast<uint64_t>(n - i)))]);
  return order;
}

Choice draw(const Pools& images, uint64_t seed) {
  const at::Tensor scores = at::empty({images.tokens.size(0)}, at::kFloat);
  for (size_t i = 0; i + 1 < images.begin.size(); ++i) {
    const std::vector<int64_t> order = draw_order(images.size(i), seed, i);
    for (size_t rank = 0; rank < order.size(); ++rank)
      scores.data_ptr<float>()[images.begin[i] + order[rank]] = -static_cast<float>(rank);
  }
  return {.kept = best_of(images, scores.to(images.tokens.device()))};
}

std::vector<Step> steps(const RandomOptions& o, const ModelFacts&, const PromptLayout&) {
  return {{.at = {Site::kProjectorOutput},
           .scope = Scope::kImage,
           .budget = {.pool = Budget::Pool::kImage, .amount = o.amount},
           .decide = [seed = o.seed](const TokenLayout&, std::span<const at::Tensor>) {
             return Verdict{.choose = [seed](const Pools& images) { return draw(images, seed); }};
           }}};
}

const Method<RandomOptions>& method() {
  using O = RandomOptions;
  static const Method<O> method = {.name = "random",
                                   .options = {keep_ratio(&O::amount),
                                               num_kept(&O::amount),
                                               {"seed", &O::seed, "of the request; each image has a stream of its own"},
                                               row_breaks(&O::row_breaks_compete)},
                                   .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_random(const RandomOptions& options) {
  return make(method(), options);
}

PolicyRow random_row() {
  return row(method(), {.paper = "-",
                        .summary = "a random subset of each image, the baseline to beat",
                        .sites = {Site::kProjectorOutput},
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"random:keep_ratio=1/4,seed=3"}, {"random:keep_ratio=1/9,row_breaks=follow"}}});
}

}  // namespace espalier
