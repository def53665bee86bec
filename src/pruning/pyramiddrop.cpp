// SPDX-License-Identifier: Apache-2.0
// PyramidDrop (arXiv 2410.17247), as docs/specs/pyramiddrop.md reads it. Symbols: L -> layers (0-based; "8" runs layers
// 0 … 7, then drops, before layer 8), rho -> keep_ratio, n0 -> tokens of the image before any pruning, a_j -> the
// probe's mean over heads of the last prompt row, on queries and keys of the layer that runs next. Differences from the
// released code: positions are kept unless positions=compact (the code renumbers); each image has a quota of its own,
// ranked by the same row (the code takes one image); the row is the last of the prompt, also in training.
#include "espalier/policies/pyramiddrop.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

using Rank = PyramiddropOptions::Rank;

constexpr ValueNames<Rank, 2> kRanks = {{{"next", Rank::kNext}, {"previous", Rank::kPrevious}}};
constexpr std::array kLayersOf32 = {8, 16, 24};

struct PyramiddropState final : PruningPolicy::State {
  std::vector<int> layers;
  std::vector<int64_t> left_per_image;  // by the stage before; empty at the first
};

class Pyramiddrop final : public PlannedPolicy {
 public:
  explicit Pyramiddrop(const PyramiddropOptions& options)
      : PlannedPolicy("pyramiddrop", options.common, options.row_breaks_compete),
        options_(options),
        amounts_(amounts_of_stages("pyramiddrop", options.amounts,
                                   options.layers.empty() ? kLayersOf32.size() : options.layers.size())) {}

  std::string spec() const override {
    const PyramiddropOptions defaults;
    SpecWriter writer("pyramiddrop");
    write_stage_amounts(writer, options_.amounts, defaults.amounts);
    write_layers(writer, options_.layers);
    return writer.choice("rank", options_.rank, defaults.rank, kRanks)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    const std::vector<int> layers = layers_of(model);
    check_stage_layers("pyramiddrop", layers, options_.rank == Rank::kNext ? 0 : 1, model.num_layers);
    int64_t before = prompt.num_image_tokens(row_breaks_compete());
    std::vector<PlannedPoint> points;
    for (size_t stage = 0; stage < layers.size(); ++stage) {
      const std::vector<int64_t> kept = num_kept(stage, prompt);
      const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
      points.push_back({{Site::kBeforeLayer, layers[stage]}, left, kept, left < before});
      if (layers[stage] == model.num_layers) points.back().may_drop = false;
      before = left;
    }
    return points;
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<PyramiddropState>();
    state->layers = layers_of(model);
    return state;
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout&, const State*) const override {
    return {AttentionProbe{.layer = options_.rank == Rank::kNext ? point.layer : point.layer - 1}};
  }

  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override {
    auto& mine = dynamic_cast<PyramiddropState&>(*state);
    const auto stage = std::find(mine.layers.begin(), mine.layers.end(), point.layer) - mine.layers.begin();
    const Blocks images = blocks_within(
        mine.left_per_image.empty() ? tokens_per_image(layout, row_breaks_compete()) : mine.left_per_image,
        num_kept(static_cast<size_t>(stage), *layout.prompt));
    mine.left_per_image = images.num_kept;
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    return {.kept = keep_best(signals[0], pinned, images), .scores = signals[0]};
  }

 private:
  std::vector<int> layers_of(const ModelFacts& model) const {
    return options_.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : options_.layers;
  }

  std::vector<int64_t> num_kept(size_t stage, const PromptLayout& prompt) const {
    PoolRule rule = pool_rule(amounts_[stage]);
    rule.rounding = Rounding::kFloor;
    rule.at_least_one = true;
    return kept_per_image(rule, prompt);
  }

  PyramiddropOptions options_;
  std::vector<Amount> amounts_;  // one a stage
};

}  // namespace

PolicyPtr make_pyramiddrop(const PyramiddropOptions& options) {
  return std::make_shared<Pyramiddrop>(options);
}

PlannedPolicyPtr pyramiddrop_from(const OptionReader& reader) {
  PyramiddropOptions options;
  options.layers = read_layers(reader);
  options.amounts = read_stage_amounts(reader, options.amounts);
  options.rank = reader.choice("rank", options.rank, kRanks);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Pyramiddrop>(options);
}

}  // namespace espalier
