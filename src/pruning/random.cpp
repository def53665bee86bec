// SPDX-License-Identifier: Apache-2.0
// Uniformly random subsets of each image's tokens; no paper of its own (ablations of FastV, arXiv 2403.06764, and
// DivPrune, 2503.02175). Symbols of docs/specs/random.md: keep -> num_kept, N -> tokens of the image, stream -> ordinal
// of the image, sigma -> SplitMix64::of_stream. Differences from what others run: the set is drawn once per request and
// stays fixed while decoding (FastV's K = 0 variant shuffles in every step); pinned tokens are kept first, the draw
// fills the rest.
#include "espalier/policies/random.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <numeric>

#include "base/random.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"

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

class Random final : public PlannedPolicy {
 public:
  explicit Random(const RandomOptions& options)
      : PlannedPolicy("random", options.common, options.row_breaks_compete), options_(options) {
    check_amount("random", options.amount);
  }

  std::string spec() const override {
    const RandomOptions defaults;
    SpecWriter writer("random");
    writer.amount(options_.amount);
    if (options_.seed != defaults.seed) writer.add("seed", std::to_string(options_.seed));
    return writer.row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete).common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts&, const PromptLayout& prompt) const override {
    const std::vector<int64_t> kept = kept_per_image(pool_rule(options_.amount), prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    return {{{Site::kProjectorOutput}, left, kept, left < prompt.num_image_tokens(row_breaks_compete())}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    const Blocks images = blocks_within(tokens_per_image(layout, row_breaks_compete()),
                                        kept_per_image(pool_rule(options_.amount), *layout.prompt));
    at::Tensor scores = at::empty({layout.num_image_tokens()}, at::kFloat);
    float* of_image = scores.data_ptr<float>();
    for (size_t i = 0; i < images.sizes.size(); ++i) {
      const std::vector<int64_t> order = draw_order(images.sizes[i], options_.seed, i);
      for (size_t rank = 0; rank < order.size(); ++rank) of_image[order[rank]] = -static_cast<float>(rank);
      of_image += images.sizes[i];
    }
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    return {.kept = keep_best(scores.to(pinned.device()), pinned, images)};
  }

 private:
  RandomOptions options_;
};

}  // namespace

PolicyPtr make_random(const RandomOptions& options) {
  return std::make_shared<Random>(options);
}

PlannedPolicyPtr random_from(const OptionReader& reader) {
  RandomOptions options;
  options.amount = reader.amount();
  options.seed = reader.unsigned_integer("seed", options.seed);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Random>(options);
}

}  // namespace espalier
