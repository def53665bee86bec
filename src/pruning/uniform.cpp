// SPDX-License-Identifier: Apache-2.0
// Evenly spaced tokens of each image; no paper. Ordinal i of k kept ones is floor((i + 1/2) · n / k) of the n tokens of
// the image. Pinned tokens are kept first, and the rest is spaced evenly over those that are not pinned.
#include "espalier/policies/uniform.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <numeric>

#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

class Uniform final : public PlannedPolicy {
 public:
  explicit Uniform(const UniformOptions& options)
      : PlannedPolicy("uniform", options.common, options.row_breaks_compete), options_(options) {
    check_amount("uniform", options.amount);
  }

  std::string spec() const override {
    return SpecWriter("uniform")
        .amount(options_.amount)
        .row_breaks(options_.row_breaks_compete, UniformOptions().row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts&, const PromptLayout& prompt) const override {
    const std::vector<int64_t> kept = kept_per_image(pool_rule(options_.amount), prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    return {{{Site::kProjectorOutput}, left, kept, left < prompt.num_image_tokens(row_breaks_compete())}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  // The host spaces the picks over the tokens that are not pinned; their rank among these finds them on the device.
  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    const Blocks images = blocks_within(tokens_per_image(layout, row_breaks_compete()),
                                        kept_per_image(pool_rule(options_.amount), *layout.prompt));
    std::vector<int64_t> is_picked;  // of the tokens that are not pinned, image by image
    for (size_t i = 0; i < images.sizes.size(); ++i) {
      const int64_t pinned = layout.prompt->pinned_per_image[i], first = std::ssize(is_picked);
      const int64_t n = images.sizes[i] - pinned, k = images.num_kept[i] - pinned;
      is_picked.resize(first + n, 0);
      for (int64_t j = 0; j < k; ++j) is_picked[first + (2 * j + 1) * n / (2 * k)] = 1;
    }
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    if (is_picked.empty()) is_picked.push_back(0);  // all are pinned
    const at::Tensor rank = pinned.logical_not().to(at::kLong).cumsum(0) - 1;
    const at::Tensor scores = int64_tensor(is_picked).to(pinned.device()).index_select(0, rank.clamp_min(0));
    return {.kept = keep_best(scores.to(at::kFloat), pinned, images)};
  }

 private:
  UniformOptions options_;
};

}  // namespace

PolicyPtr make_uniform(const UniformOptions& options) {
  return std::make_shared<Uniform>(options);
}

PlannedPolicyPtr uniform_from(const OptionReader& reader) {
  UniformOptions options;
  options.amount = reader.amount();
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Uniform>(options);
}

}  // namespace espalier
