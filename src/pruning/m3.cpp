// SPDX-License-Identifier: Apache-2.0
// M3: "Matryoshka Multimodal Models" (arXiv 2405.17430), as docs/specs/m3.md reads it.
//   X     image tokens of `hidden` at the projector's output (the released place; the paper pools before it)
//   s     num_kept
//   h, w  the crop's grid
//   k     cell
// Differences from the released code:
//   - a k that is not whole or does not divide the grid is refused (the code rounds down and loses the border);
//   - means are summed in float32; un-padded crops average what is present of a cell, where the code pools before
//     un-padding;
//   - crops enter the decoder one behind the other, without row breaks; a cell takes the position id of its first patch
//     unless positions=compact says otherwise;
//   - every token is merged, so a pinned one cannot stay: such a request is refused.
#include "espalier/policies/m3.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/group_means.h"

namespace espalier {

namespace {

using O = M3Options;
using Cell = std::tuple<int, int, int64_t, int64_t>;  // image, crop, row and column of the cell

// k of a crop; refuses what the grid does not allow.
int64_t cell_of(const O& o, GridSize grid) {
  const int64_t whole = grid.rows * grid.cols;
  const int64_t kept = kept_of(o.amount, whole, Rounding::kNearestEven);
  const bool is_exact = o.amount.num_kept || o.amount.keep_ratio->num * whole == kept * o.amount.keep_ratio->den;
  for (int64_t k = 1; is_exact && k <= std::min(grid.rows, grid.cols); ++k)
    if (kept * k * k == whole && grid.rows % k == 0 && grid.cols % k == 0) return k;
  throw Error("m3: a crop of " + std::to_string(grid.rows) + " x " + std::to_string(grid.cols) +
              " tokens cannot become " + (is_exact ? std::to_string(kept) + " of them" : "this part of them") +
              "; cells are squares that divide the grid");
}

// The cell of each token of the unpruned sequence; image -1 for what is not a patch.
std::vector<Cell> cells_of(const O& o, const PromptLayout& prompt) {
  std::vector<Cell> cells(static_cast<size_t>(prompt.num_tokens), Cell{-1, 0, 0, 0});
  for (const Segment& s : prompt.segments) {
    if (s.kind != Segment::Kind::kPatches) continue;
    const int64_t k = cell_of(o, prompt.images[static_cast<size_t>(s.image)].grid);
    for (int64_t t = 0; t < s.end - s.begin; ++t)
      cells[static_cast<size_t>(s.begin + t)] = {s.image, s.crop, (s.origin.rows + t / s.grid.cols) / k,
                                                 (s.origin.cols + t % s.grid.cols) / k};
  }
  return cells;
}

Verdict pool(const std::vector<Cell>& cells, const TokenLayout& layout, const at::Tensor& hidden) {
  const at::Device device = layout.image_tokens.device();
  // Places are the host's where nothing has left; else the device is asked, and waited for.
  const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).cpu();
  std::map<Cell, int64_t> number;  // of the cell
  std::vector<int64_t> cell, first;
  for (int64_t i = 0; i < layout.num_image_tokens(); ++i) {
    const int64_t from = source.const_data_ptr<int64_t>()[i];  // -1: of an earlier policy, without a place
    const Cell key = from < 0 ? Cell{-1, 0, i, 0} : cells[static_cast<size_t>(from)];
    const auto [found, is_new] = number.try_emplace(key, static_cast<int64_t>(first.size()));
    if (is_new) first.push_back(i);
    cell.push_back(found->second);
  }
  at::Tensor means = group_means(hidden, layout.image_tokens, int64_tensor(cell).to(device), std::ssize(first));
  const at::Tensor firsts = int64_tensor(first).to(device);
  return {.kept = int64_tensor({}).to(device),
          .added = {{NewTokens::Where::kInPlace, std::move(means), firsts, firsts}},
          .crop_by_crop = true};
}

std::vector<Step> steps(const O& o, const ModelFacts&, const PromptLayout& prompt) {
  const bool drops =
      std::ranges::any_of(prompt.images, [&](const ImageShape& image) { return cell_of(o, image.grid) > 1; });
  if (!drops) return {};
  if (std::ranges::any_of(prompt.pinned_per_image, [](int64_t n) { return n > 0; }))
    throw Error("m3: a pinned token cannot stay, every token is merged with its neighbours");
  const auto cells = std::make_shared<const std::vector<Cell>>(cells_of(o, prompt));
  std::vector<int64_t> counts, of_image(prompt.images.size(), 0);
  const std::set<Cell> different(cells->begin(), cells->end());
  for (const CropFacts& crop : crops_of(prompt)) {
    counts.push_back(std::ranges::count_if(different, [&](const Cell& cell) {
      return std::get<0>(cell) == crop.image && std::get<1>(cell) == crop.crop;
    }));
    of_image[static_cast<size_t>(crop.image)] += counts.back();
  }
  for (size_t i = 0; i < of_image.size(); ++i)
    if (of_image[i] < std::min(o.common.min_per_image, prompt.num_patches(static_cast<int>(i))))
      throw Error("m3: image " + std::to_string(i) + " becomes " + std::to_string(of_image[i]) +
                  " tokens, fewer than min_per_image=" + std::to_string(o.common.min_per_image));
  return {{.at = {Site::kProjectorOutput},
           .scope = Scope::kCrop,
           .budget = {.pool = Budget::Pool::kCrop, .counts = counts},
           .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
           .decide = [cells](const TokenLayout& layout,
                             std::span<const at::Tensor> signals) { return pool(*cells, layout, signals[0]); },
           .is_nested = false}};
}

const Method<O>& method() {
  static const Method<O> method = {.name = "m3",
                                   .options = {keep_ratio(&O::amount, "1 over the square of a cell; this or num_kept"),
                                               num_kept(&O::amount, "cells of a whole crop; this or keep_ratio")},
                                   .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_m3(const M3Options& options) {
  return make(method(), options);
}

PolicyRow m3_row() {
  return row(method(), {.paper = "arXiv 2405.17430",
                        .summary = "square cells of the grid become their means; for models trained with it",
                        .sites = {Site::kProjectorOutput},
                        .needs = "projected tokens",
                        .refusal = any_model,
                        .examples = {{"m3:keep_ratio=1/4", /*keeps_tokens=*/false}}});
}

}  // namespace espalier
