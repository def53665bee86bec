// SPDX-License-Identifier: Apache-2.0
// A prompt layout written down segment by segment.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "layout/cut.h"

namespace espalier {

class LayoutBuilder {
 public:
  LayoutBuilder& text(int64_t length, int example) {
    return add({.kind = Segment::Kind::kText, .example = example}, length);
  }
  // A whole image of one crop.
  LayoutBuilder& image(GridSize grid, int example) {
    layout_.images.push_back({.grid = grid, .tiling = {}});
    return patches(static_cast<int>(layout_.images.size()) - 1, 0, grid, {0, 0}, example);
  }
  // An image with a full view and `tiling` tiles, each of `grid`, stitched row by row.
  LayoutBuilder& tiled_image(GridSize grid, GridSize tiling, int example) {
    const int number = static_cast<int>(layout_.images.size());
    layout_.images.push_back({.grid = grid, .tiling = tiling});
    patches(number, 0, grid, {0, 0}, example);
    for (int64_t row = 0; row < tiling.rows * grid.rows; ++row) {
      for (int64_t column = 0; column < tiling.cols; ++column) {
        const int64_t tile = 1 + row / grid.rows * tiling.cols + column;
        patches(number, static_cast<int>(tile), {1, grid.cols}, {row % grid.rows, 0}, example);
      }
      row_break(number, example);
    }
    return *this;
  }
  LayoutBuilder& patches(int image, int crop, GridSize grid, GridSize origin, int example) {
    return add({.kind = Segment::Kind::kPatches,
                .image = image,
                .crop = crop,
                .example = example,
                .grid = grid,
                .origin = origin},
               grid.rows * grid.cols);
  }
  LayoutBuilder& row_break(int image, int example) {
    return add({.kind = Segment::Kind::kRowBreak, .image = image, .example = example}, 1);
  }
  // Pins tokens of the unpruned sequence.
  LayoutBuilder& pin(std::vector<int64_t> tokens) {
    pinned_ = std::move(tokens);
    return *this;
  }

  PromptLayout& layout() { return layout_; }
  int64_t length() const { return end_; }
  std::shared_ptr<const PromptLayout> build(int query_example, at::Device device = at::kCPU) {
    layout_.query_example = query_example;
    finish_prompt_layout(layout_, device);
    for (const int64_t t : pinned_) {
      layout_.pinned[t] = true;
      ++layout_.pinned_per_image[static_cast<size_t>(layout_.image[t].item<int64_t>())];
    }
    return std::make_shared<PromptLayout>(layout_);
  }

 private:
  LayoutBuilder& add(Segment segment, int64_t length) {
    segment.begin = end_;
    segment.end = end_ += length;
    layout_.segments.push_back(segment);
    return *this;
  }

  PromptLayout layout_;
  std::vector<int64_t> pinned_;
  int64_t end_ = 0;
};

}  // namespace espalier
