// SPDX-License-Identifier: Apache-2.0
// HiRED: "Attention-Guided Token Dropping for Efficient Inference of High-Resolution VLMs" (arXiv 2408.10945), as
// docs/specs/hired.md reads it. Symbols: rate -> keep_ratio, N_total -> budget of the image, N_0 and N_i -> budgets of
// its crops, l_init and l_final -> layer_init and layer_final, a_l -> the class probe (mean over heads where the paper
// sums; all that is used of it is order and proportion), T_i -> region of tile i. Differences from the released code:
// tiles get budgets by attention mass on their region (allocation=count_strips: by marks in strips, as the code does);
// what un-padding cuts away is absent before the choice; every image has a budget of its own. Row breaks leave whenever
// the policy acts, as released. Pinned tokens stay, beyond their crop's budget if they must.
#include "espalier/policies/hired.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Allocation = HiredOptions::Allocation;

constexpr ValueNames<Allocation, 2> kAllocations = {
    {{"mass", Allocation::kMass}, {"count_strips", Allocation::kCountStrips}}};

// Weight of each tile, from the class attention on the full view, row by row.
std::vector<double> tile_weights(const std::vector<double>& attention, GridSize grid, GridSize tiling,
                                 Allocation allocation, Fraction alpha) {
  const auto n = static_cast<int64_t>(attention.size());
  const int64_t num_tiles = tiling.rows * tiling.cols;
  std::vector<double> weights(num_tiles, 0.0);
  if (allocation == Allocation::kMass) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t row = j / grid.cols * tiling.rows / grid.rows, col = j % grid.cols * tiling.cols / grid.cols;
      weights[row * tiling.cols + col] += attention[j];
    }
    return weights;
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::greater<>(), [&](int64_t j) { return attention[j]; });
  const int64_t marks = rounded_share({alpha.den - alpha.num, alpha.den}, n, Rounding::kFloor);
  for (int64_t i = 0; i < marks; ++i) weights[order[i] * num_tiles / n] += 1.0;
  return weights;
}

class Hired final : public PlannedPolicy {
 public:
  // Row breaks compete, so that they can leave.
  explicit Hired(const HiredOptions& options) : PlannedPolicy("hired", options.common, true), options_(options) {
    check_amount("hired", options.amount);
    if (options.alpha.den <= 0 || options.alpha.num < 0 || options.alpha.num > options.alpha.den)
      throw Error("hired: alpha=" + to_string(options.alpha) + " is not from 0 to 1");
  }

  std::string spec() const override {
    const HiredOptions defaults;
    SpecWriter writer("hired");
    writer.amount(options_.amount)
        .add("alpha", options_.alpha, defaults.alpha)
        .choice("allocation", options_.allocation, defaults.allocation, kAllocations)
        .add("layer_init", int64_t{options_.layer_init}, defaults.layer_init);
    if (options_.layer_final) writer.add("layer_final", std::to_string(*options_.layer_final));
    return writer.common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (!model.has_class_token) throw Error("hired: the vision tower has no class token");
    for (const int layer : {options_.layer_init, layer_final(model)})
      if (layer < 0 || layer >= model.vision_layers)
        throw Error("hired: vision layer " + std::to_string(layer) + ", but the tower has " +
                    std::to_string(model.vision_layers));
    const auto pools = crop_pools(prompt);
    PlannedPoint point{{Site::kVisionOutput}, 0, {}, false};
    for (int image = 0; image < static_cast<int>(prompt.images.size()); ++image) {
      const int64_t whole = whole_image(pools, prompt, image), left = budget(pools, prompt, image);
      point.may_drop |= left < whole;
      point.tokens_left_per_image.push_back(left);
      *point.tokens_left += left;
    }
    if (!point.may_drop) return {{{Site::kVisionOutput}, prompt.num_image_tokens(true), {}, false}};
    if (has_tiles(pools)) return {{{Site::kVisionOutput}, {}, {}, true}};  // floors of shares: the data decide
    return {point};
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<HiredState>();
    state->layer_final = layer_final(model);
    return state;
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout& layout, const State* state) const override {
    const auto of_class = [](int layer) {
      return AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass};
    };
    std::vector<Signal> signals = {of_class(dynamic_cast<const HiredState&>(*state).layer_final)};
    if (has_tiles(crop_pools(*layout.prompt))) signals.emplace_back(of_class(options_.layer_init));
    return signals;
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const PromptLayout& prompt = *layout.prompt;
    const auto pools = crop_pools(prompt);
    const auto crops = crop_tokens(layout, pools, true);
    Blocks blocks;
    for (const CropPool& pool : pools) blocks.sizes.push_back(pool.size);
    blocks.num_kept = crop_budgets(prompt, pools, crops, signals.size() > 1 ? signals[1].cpu() : at::Tensor());
    const at::Tensor ordinals = joined(crops, &CropTokens::ordinals, layout);
    const at::Tensor ranked = signals[0].index_select(0, joined(crops, &CropTokens::patches, layout));
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens.index_select(0, ordinals));
    const at::Tensor best = keep_best(ranked, pinned, blocks);
    return {.kept = std::get<0>(ordinals.index_select(0, best).sort()),
            .scores = at::zeros({layout.num_image_tokens()}, ranked.options()).index_copy(0, ordinals, ranked)};
  }

 private:
  struct HiredState final : State {
    int layer_final = 0;
  };

  int layer_final(const ModelFacts& model) const { return options_.layer_final.value_or(model.vision_feature_layer); }

  static bool has_tiles(const std::vector<CropPool>& pools) {
    return std::ranges::any_of(pools, [](const CropPool& pool) { return pool.crop > 0; });
  }

  // Tokens of all crops of an image, were they whole.
  static int64_t whole_image(const std::vector<CropPool>& pools, const PromptLayout& prompt, int image) {
    const GridSize grid = prompt.images[image].grid;
    return std::ranges::count(pools, image, &CropPool::image) * grid.rows * grid.cols;
  }

  // N_total.
  int64_t budget(const std::vector<CropPool>& pools, const PromptLayout& prompt, int image) const {
    const int64_t of_image = image;
    return with_protected("hired", kept_of(options_.amount, whole_image(pools, prompt, image), Rounding::kFloor),
                          {&of_image, 1}, prompt, protected_per_image(prompt, false, common().min_per_image));
  }

  // N_0, N_1, … of each image. attention: layer_init's on all patches, on the CPU; undefined where no image has tiles.
  std::vector<int64_t> crop_budgets(const PromptLayout& prompt, const std::vector<CropPool>& pools,
                                    const std::vector<CropTokens>& crops, const at::Tensor& attention) const {
    std::vector<int64_t> budgets;
    for (size_t first = 0, last = 0; first < pools.size(); first = last) {
      const int image = pools[first].image;
      while (last < pools.size() && pools[last].image == image) ++last;
      const ImageShape& shape = prompt.images[image];
      const int64_t n = shape.grid.rows * shape.grid.cols, total = budget(pools, prompt, image);
      if (last - first == 1) {
        budgets.push_back(std::min(total, pools[first].size));
        continue;
      }
      const int64_t full_view = std::min(rounded_share(options_.alpha, total, Rounding::kFloor), n);
      const int64_t of_tiles = std::min(total - full_view, static_cast<int64_t>(last - first - 1) * n);
      std::vector<double> looks;
      for (const int64_t patch : crops[first].patches) looks.push_back(attention.const_data_ptr<float>()[patch]);
      const std::vector<double> weights =
          tile_weights(looks, shape.grid, shape.tiling.value_or(GridSize{1, 1}), options_.allocation, options_.alpha);
      const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
      budgets.push_back(full_view);
      for (size_t i = first + 1; i < last; ++i) {
        const double share = sum > 0 ? weights.at(pools[i].crop - 1) / sum : 1.0 / static_cast<double>(weights.size());
        budgets.push_back(std::min(static_cast<int64_t>(std::floor(static_cast<double>(of_tiles) * share + 1e-9)), n));
      }
    }
    for (size_t i = 0; i < pools.size(); ++i) budgets[i] = std::clamp(budgets[i], pools[i].pinned, pools[i].size);
    raise_to_floor(budgets, pools, common().min_per_image);
    return budgets;
  }

  HiredOptions options_;
};

}  // namespace

PolicyPtr make_hired(const HiredOptions& options) {
  return std::make_shared<Hired>(options);
}

PlannedPolicyPtr hired_from(const OptionReader& reader) {
  HiredOptions options;
  options.amount = reader.amount();
  options.alpha = reader.fraction("alpha", options.alpha);
  options.allocation = reader.choice("allocation", options.allocation, kAllocations);
  options.layer_init = static_cast<int>(reader.integer("layer_init", options.layer_init, 0, 1 << 20));
  if (reader.text("layer_final")) options.layer_final = static_cast<int>(reader.integer("layer_final", 0, 0, 1 << 20));
  options.common = reader.common();
  return std::make_shared<Hired>(options);
}

}  // namespace espalier
