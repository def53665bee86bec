// SPDX-License-Identifier: Apache-2.0
// M3: "Matryoshka Multimodal Models" (arXiv 2405.17430), as docs/specs/m3.md reads it.
// Symbols: X -> image tokens of `hidden` at the projector's output (the released place; the paper pools before it), s
// -> num_kept, h and w -> the crop's grid, k -> cell. Differences from the released code: a k that is not whole or does
// not divide the grid is refused (the code rounds down and loses the border); means are summed in float32; un-padded
// crops average what is present of a cell, where the code pools before un-padding; crops enter the decoder one behind
// the other, without row breaks; a cell takes the position id of its first patch unless positions=compact says
// otherwise. Every token is merged, so a pinned one cannot stay: such a request is refused.
#include "espalier/policies/m3.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/group_means.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

class M3 final : public PlannedPolicy {
 public:
  explicit M3(const M3Options& options) : PlannedPolicy("m3", options.common, false), options_(options) {
    check_amount("m3", options.amount);
  }

  std::string spec() const override { return SpecWriter("m3").amount(options_.amount).common(common()).text(); }

  std::vector<PlannedPoint> plan(const ModelFacts&, const PromptLayout& prompt) const override {
    std::vector<int64_t> cells(prompt.images.size(), 0);
    int64_t left = 0;
    bool may_drop = false;
    for (size_t i = 0; i < cells.size(); ++i) may_drop |= cell_of(prompt.images[i].grid) > 1;
    if (may_drop && std::ranges::any_of(prompt.pinned_per_image, [](int64_t n) { return n > 0; }))
      throw Error("m3: a pinned token cannot stay, every token is merged with its neighbours");
    const auto keys = cell_keys(prompt);
    std::map<Key, bool> seen;
    for (const Key& key : keys) {
      if (std::get<0>(key) < 0 || std::exchange(seen[key], true)) continue;
      ++cells[std::get<0>(key)];
      ++left;
    }
    for (size_t i = 0; may_drop && i < cells.size(); ++i)
      if (cells[i] < std::min(common().min_per_image, prompt.num_patches(static_cast<int>(i))))
        throw Error("m3: image " + std::to_string(i) + " becomes " + std::to_string(cells[i]) +
                    " tokens, fewer than min_per_image=" + std::to_string(common().min_per_image));
    return {{{Site::kProjectorOutput}, left, cells, may_drop}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override {
    return {Tap{Tap::What::kHidden}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const at::Device device = layout.image_tokens.device();
    const auto keys = cell_keys(*layout.prompt);
    // Places are the host's where nothing has left; else the device is asked, and waited for.
    const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).cpu();
    std::map<Key, int64_t> number;  // of the cell
    std::vector<int64_t> cell, first;
    for (int64_t i = 0; i < layout.num_image_tokens(); ++i) {
      const int64_t from = source.const_data_ptr<int64_t>()[i];  // -1: of an earlier policy, without a place
      const Key key = from < 0 ? Key{-1, 0, i, 0} : keys[from];
      const auto [found, is_new] = number.try_emplace(key, static_cast<int64_t>(first.size()));
      if (is_new) first.push_back(i);
      cell.push_back(found->second);
    }
    at::Tensor means = group_means(signals[0], layout.image_tokens, int64_tensor(cell).to(device), std::ssize(first));
    const at::Tensor firsts = int64_tensor(first).to(device);
    return {.kept = int64_tensor({}).to(device),
            .added = {{NewTokens::Where::kInPlace, std::move(means), firsts, firsts}},
            .crop_by_crop = true};
  }

 private:
  using Key = std::tuple<int, int, int64_t, int64_t>;  // image, crop, row and column of the cell

  // k of a crop; refuses what the grid does not allow.
  int64_t cell_of(GridSize grid) const {
    const int64_t whole = grid.rows * grid.cols;
    const int64_t kept = kept_of(options_.amount, whole, Rounding::kNearestEven);
    const bool is_exact =
        options_.amount.num_kept || options_.amount.keep_ratio->num * whole == kept * options_.amount.keep_ratio->den;
    for (int64_t k = 1; is_exact && k <= std::min(grid.rows, grid.cols); ++k)
      if (kept * k * k == whole && grid.rows % k == 0 && grid.cols % k == 0) return k;
    throw Error("m3: a crop of " + std::to_string(grid.rows) + " x " + std::to_string(grid.cols) +
                " tokens cannot become " + (is_exact ? std::to_string(kept) + " of them" : "this part of them") +
                "; cells are squares that divide the grid");
  }

  // The cell of each token of the unpruned sequence; image -1 for what is not a patch.
  std::vector<Key> cell_keys(const PromptLayout& prompt) const {
    std::vector<Key> keys(prompt.num_tokens, Key{-1, 0, 0, 0});
    for (const Segment& s : prompt.segments) {
      if (s.kind != Segment::Kind::kPatches) continue;
      const int64_t k = cell_of(prompt.images[s.image].grid);
      for (int64_t t = 0; t < s.end - s.begin; ++t)
        keys[s.begin + t] = {s.image, s.crop, (s.origin.rows + t / s.grid.cols) / k,
                             (s.origin.cols + t % s.grid.cols) / k};
    }
    return keys;
  }

  M3Options options_;
};

}  // namespace

PolicyPtr make_m3(const M3Options& options) {
  return std::make_shared<M3>(options);
}

PlannedPolicyPtr m3_from(const OptionReader& reader) {
  M3Options options;
  options.amount = reader.amount();
  options.common = reader.common();
  return std::make_shared<M3>(options);
}

}  // namespace espalier
