// SPDX-License-Identifier: Apache-2.0
// HiRED: "Attention-Guided Token Dropping for Efficient Inference of High-Resolution VLMs" (arXiv 2408.10945), as
// docs/specs/hired.md reads it.
//   rate             keep_ratio
//   N_total          budget of the image
//   N_0, N_i         budgets of its crops
//   l_init, l_final  layer_init, layer_final
//   a_l              the class probe: mean over heads where the paper sums; only order and proportion are used
//   T_i              region of tile i
// Differences from the released code:
//   - tiles get budgets by attention mass on their region (allocation=count_strips: by marks in strips, as the code);
//   - what un-padding cuts away is absent before the choice; every image has a budget of its own;
//   - row breaks leave whenever the policy acts, as released;
//   - pinned tokens stay, beyond their crop's budget if they must.
#include "espalier/policies/hired.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = HiredOptions;
using Allocation = O::Allocation;
using Numbers = std::vector<int64_t>;

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

// Tokens of all crops of an image, were they whole.
int64_t whole_image(const std::vector<CropFacts>& crops, const PromptLayout& prompt, int64_t image) {
  const GridSize grid = prompt.images[static_cast<size_t>(image)].grid;
  return std::ranges::count(crops, image, &CropFacts::image) * grid.rows * grid.cols;
}

// N_total.
int64_t budget_of(const O& o, const std::vector<CropFacts>& crops, const PromptLayout& prompt, int64_t image) {
  return with_protected("hired", kept_of(o.amount, whole_image(crops, prompt, image), Rounding::kFloor), {&image, 1},
                        prompt, protected_per_image(prompt, false, o.common.min_per_image));
}

// N_0, N_1, … of each image. looks: layer_init's attention on the full view of each image with tiles.
Numbers crop_budgets(const O& o, const PromptLayout& prompt, const std::vector<std::vector<double>>& looks) {
  const std::vector<CropFacts> crops = crops_of(prompt);
  Numbers budgets;
  for (size_t first = 0, last = 0; first < crops.size(); first = last) {
    const int image = crops[first].image;
    while (last < crops.size() && crops[last].image == image) ++last;
    const ImageShape& shape = prompt.images[static_cast<size_t>(image)];
    const int64_t n = shape.grid.rows * shape.grid.cols, total = budget_of(o, crops, prompt, image);
    if (last - first == 1) {
      budgets.push_back(std::min(total, crops[first].size));
      continue;
    }
    const int64_t full_view = std::min(rounded_share(o.alpha, total, Rounding::kFloor), n);
    const int64_t of_tiles = std::min(total - full_view, static_cast<int64_t>(last - first - 1) * n);
    const std::vector<double> weights = tile_weights(looks[static_cast<size_t>(image)], shape.grid,
                                                     shape.tiling.value_or(GridSize{1, 1}), o.allocation, o.alpha);
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    budgets.push_back(full_view);
    for (size_t i = first + 1; i < last; ++i) {
      const double share = sum > 0 ? weights.at(static_cast<size_t>(crops[i].crop - 1)) / sum
                                   : 1.0 / static_cast<double>(weights.size());
      budgets.push_back(std::min(static_cast<int64_t>(std::floor(static_cast<double>(of_tiles) * share + 1e-9)), n));
    }
  }
  for (size_t i = 0; i < crops.size(); ++i) budgets[i] = std::clamp(budgets[i], crops[i].pinned, crops[i].size);
  return budgets;
}

// Attention on the full view of each image that is there, on the host.
std::vector<std::vector<double>> looks_of(const TokenLayout& layout, const at::Tensor& attention) {
  const Pools pools = pools_of(layout, Budget::Pool::kCrop);
  const at::Tensor looks =
      attention.index_select(0, patch_index(layout).index_select(0, pools.tokens)).to(at::kFloat).cpu().contiguous();
  const std::vector<CropFacts> crops = crops_of(*layout.prompt);
  std::vector<std::vector<double>> of_images(layout.prompt->images.size());
  for (size_t i = 0; i < crops.size(); ++i)
    if (crops[i].crop == 0) {
      const float* of_crop = looks.const_data_ptr<float>();
      of_images[static_cast<size_t>(crops[i].image)].assign(of_crop + pools.begin[i], of_crop + pools.begin[i + 1]);
    }
  return of_images;
}

Verdict rank(const O& o, const TokenLayout& layout, std::span<const at::Tensor> signals) {
  const at::Tensor kind = layout.kind.index_select(0, layout.image_tokens);
  const at::Tensor scores = signals[0]
                                .index_select(0, patch_index(layout))
                                .masked_fill(kind == static_cast<int64_t>(Segment::Kind::kRowBreak), 0);
  if (signals.size() == 1) return {.scores = scores};
  return {.scores = scores, .num_kept = crop_budgets(o, *layout.prompt, looks_of(layout, signals[1]))};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int layer_final = o.layer_final.value_or(model.vision_feature_layer);
  for (const int layer : {o.layer_init, layer_final}) check_vision_layer("hired", layer, model);
  const std::vector<CropFacts> crops = crops_of(prompt);
  bool drops = false;
  for (int64_t image = 0; image < std::ssize(prompt.images); ++image)
    drops |= budget_of(o, crops, prompt, image) < whole_image(crops, prompt, image);
  if (!drops) return {};
  // Floors of shares between tiles: then the data decide.
  const bool has_tiles = std::ranges::any_of(crops, [](const CropFacts& crop) { return crop.crop > 0; });
  Step step{.at = {Site::kVisionOutput},
            .scope = Scope::kImage,
            .budget = {.pool = Budget::Pool::kCrop, .is_adaptive = has_tiles},
            .decide = [o](const TokenLayout& layout, std::span<const at::Tensor> signals) {
              return rank(o, layout, signals);
            }};
  if (!has_tiles) step.budget.counts = crop_budgets(o, prompt, {});
  step.needs = [layer_final, layer_init = o.layer_init, has_tiles](const TokenLayout&) {
    std::vector<Signal> signals = {AttentionProbe{.layer = layer_final, .rows = AttentionProbe::Rows::kClass}};
    if (has_tiles) signals.emplace_back(AttentionProbe{.layer = layer_init, .rows = AttentionProbe::Rows::kClass});
    return signals;
  };
  return {step};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "hired",
      .options = {keep_ratio(&O::amount),
                  num_kept(&O::amount, "of each image, all its crops together; this or keep_ratio"),
                  {"alpha", &O::alpha, "part of an image's budget that its full view gets", kShare},
                  {"allocation",
                   &O::allocation,
                   {{"mass", Allocation::kMass}, {"count_strips", Allocation::kCountStrips}},
                   "budget of a tile: mass, the attention on its region; count_strips, as the released code does"},
                  {"layer_init", &O::layer_init, "vision layer whose class attention divides the budget", at_least(0)},
                  {"layer_final", &O::layer_final,
                   "vision layer whose class attention ranks; the one the projector reads", at_least(0)}},
      .steps = steps,
      .row_breaks_compete = true};  // so that they can leave
  return method;
}

}  // namespace

PolicyPtr make_hired(const HiredOptions& options) {
  return make(method(), options);
}

PolicyRow hired_row() {
  return row(method(),
             {.paper = "arXiv 2408.10945",
              .summary = "a budget over full view and tiles, spent on what the class token looks at",
              .sites = {Site::kVisionOutput},
              .needs = "class attention of one or two vision layers",
              .refusal = needs_class_token,
              .examples = {{"hired:keep_ratio=1/4"}, {"hired:keep_ratio=1/10,allocation=count_strips,alpha=1/5"}}});
}

}  // namespace espalier
