// SPDX-License-Identifier: Apache-2.0
// DivPrune: "Diversity-based Visual Token Pruning" (arXiv 2503.02175), as docs/specs/divprune.md reads it.
// Symbols: E -> image tokens of `hidden` at the projector's output, D -> ops::max_min_select's distance, ratio ->
// keep_ratio, P_t -> the first t picks, keep -> num_kept of the image. The greedy choice of Algorithm 1; the paper
// calls it exact, which it is not. Differences from the released code: picked tokens are masked (the code can pick a
// duplicate twice), the nearest neighbour of the first pick is never the token itself, norms have a floor, distances
// are float32, every image of a request is chosen from, positions are kept unless positions=compact says otherwise.
// Pinned tokens are the first picks; what follows keeps its distance from them.
#include "espalier/policies/divprune.h"

#include <algorithm>
#include <numeric>

#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

constexpr ValueNames<ops::Distance, 3> kDistances = {
    {{"cosine", ops::Distance::kCosine}, {"l1", ops::Distance::kL1}, {"l2", ops::Distance::kL2}}};

class Divprune final : public PlannedPolicy {
 public:
  explicit Divprune(const DivpruneOptions& options)
      : PlannedPolicy("divprune", options.common, options.row_breaks_compete), options_(options) {
    check_amount("divprune", options.amount);
  }

  std::string spec() const override {
    const DivpruneOptions defaults;
    return SpecWriter("divprune")
        .amount(options_.amount)
        .choice("distance", options_.distance, defaults.distance, kDistances)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts&, const PromptLayout& prompt) const override {
    const std::vector<int64_t> kept = kept_per_image(pool_rule(options_.amount), prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    return {{{Site::kProjectorOutput}, left, kept, left < prompt.num_image_tokens(row_breaks_compete())}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override {
    return {Tap{Tap::What::kHidden}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const std::vector<int64_t> sizes = tokens_per_image(layout, row_breaks_compete());
    std::vector<int64_t> begin{0}, kept = kept_per_image(pool_rule(options_.amount), *layout.prompt);
    for (size_t i = 0; i < sizes.size(); ++i) {
      begin.push_back(begin.back() + sizes[i]);
      kept[i] = std::min(kept[i], sizes[i]);
    }
    const at::Tensor picks =
        ops::max_min_select(ops::gather_rows(signals[0], layout.image_tokens), int64_tensor(begin), int64_tensor(kept),
                            options_.distance, layout.pinned.index_select(0, layout.image_tokens));
    return {.kept = std::get<0>(picks.sort())};
  }

 private:
  DivpruneOptions options_;
};

}  // namespace

PolicyPtr make_divprune(const DivpruneOptions& options) {
  return std::make_shared<Divprune>(options);
}

PlannedPolicyPtr divprune_from(const OptionReader& reader) {
  DivpruneOptions options;
  options.amount = reader.amount();
  options.distance = reader.choice("distance", options.distance, kDistances);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Divprune>(options);
}

}  // namespace espalier
