// SPDX-License-Identifier: Apache-2.0
// Evenly spaced tokens of each image; no paper. Ordinal i of k kept ones is floor((i + 1/2) · n / k) of the n tokens of
// the image. Pinned tokens are kept first, and the rest is spaced evenly over those that are not pinned.
#include "espalier/policies/uniform.h"

#include <ATen/TensorOperators.h>

#include "pruning/built_in.h"

namespace espalier {

namespace {

// The host spaces the picks over the tokens that are not pinned; their rank among these finds them on the device.
Choice space_evenly(const Pools& images, const std::vector<int64_t>& pinned) {
  std::vector<int64_t> is_picked;  // of the tokens that are not pinned, image by image
  for (size_t i = 0; i + 1 < images.begin.size(); ++i) {
    if (images.size(i) == 0) continue;
    const int64_t n = images.size(i) - pinned[i], k = images.num_kept[i] - pinned[i], first = std::ssize(is_picked);
    is_picked.resize(static_cast<size_t>(first + n), 0);
    for (int64_t j = 0; j < k; ++j) is_picked[static_cast<size_t>(first + (2 * j + 1) * n / (2 * k))] = 1;
  }
  if (is_picked.empty()) is_picked.push_back(0);  // all are pinned
  const at::Tensor rank = images.always.logical_not().to(at::kLong).cumsum(0) - 1;
  const at::Tensor scores = int64_tensor(is_picked).to(rank.device()).index_select(0, rank.clamp_min(0));
  return {.kept = best_of(images, scores.to(at::kFloat))};
}

std::vector<Step> steps(const UniformOptions& o, const ModelFacts&, const PromptLayout&) {
  return {{.at = {Site::kProjectorOutput},
           .scope = Scope::kImage,
           .budget = {.pool = Budget::Pool::kImage, .amount = o.amount},
           .decide =
               [](const TokenLayout& layout, std::span<const at::Tensor>) {
                 return Verdict{.choose = [pinned = layout.prompt->pinned_per_image](const Pools& images) {
                   return space_evenly(images, pinned);
                 }};
               },
           .is_nested = false}};
}

const Method<UniformOptions>& method() {
  using O = UniformOptions;
  static const Method<O> method = {
      .name = "uniform",
      .options = {keep_ratio(&O::amount), num_kept(&O::amount), row_breaks(&O::row_breaks_compete)},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_uniform(const UniformOptions& options) {
  return make(method(), options);
}

PolicyRow uniform_row() {
  return row(method(), {.paper = "-",
                        .summary = "evenly spaced tokens of each image",
                        .sites = {Site::kProjectorOutput},
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"uniform:keep_ratio=1/4"}}});
}

}  // namespace espalier
