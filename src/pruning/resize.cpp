// SPDX-License-Identifier: Apache-2.0
// Smaller pictures in place of fewer tokens. An image with tiles loses tiles first, as long as more than the wanted
// tokens are left; then the grid of its crops shrinks, its sides in proportion, to the number nearest the wanted one.
// What un-padding will cut away is not known before preprocessing and counts as there.
#include "espalier/policies/resize.h"

#include <algorithm>
#include <cmath>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

int64_t area(GridSize grid) {
  return grid.rows * grid.cols;
}

int64_t crops_of(const std::optional<GridSize>& tiling) {
  return 1 + (tiling ? area(*tiling) : 0);
}

// The grid with about `wanted` places whose sides are as near as can be to the old ones' proportion: of the nearest
// lengths of the shorter side, the one that comes nearest.
GridSize shrunk(GridSize grid, int64_t wanted) {
  if (wanted >= area(grid)) return grid;
  const double scale = std::sqrt(static_cast<double>(std::max<int64_t>(1, wanted)) / static_cast<double>(area(grid)));
  GridSize best;
  int64_t best_error = area(grid);
  const auto low = [&](int64_t side) { return std::max<int64_t>(1, static_cast<int64_t>(side * scale)); };
  for (int64_t rows = low(grid.rows); rows <= std::min(low(grid.rows) + 1, grid.rows); ++rows)
    for (int64_t cols = low(grid.cols); cols <= std::min(low(grid.cols) + 1, grid.cols); ++cols) {
      if (grid.rows == grid.cols && rows != cols) continue;  // a square tower takes squares
      const int64_t error = std::abs(rows * cols - wanted);
      if (error < best_error) best = {rows, cols}, best_error = error;
    }
  return best;
}

using O = ResizeOptions;

ImageShape wanted_shape(const O& o, const ImageShape& shape) {
  ImageShape wanted = shape;
  const int64_t whole = area(shape.grid), tokens = whole * crops_of(shape.tiling);
  const int64_t number = std::max(
      {kept_of(o.amount, tokens, Rounding::kNearestEven), std::min(o.common.min_per_image, tokens), int64_t{1}});
  if (shape.tiling) {
    int64_t fewest = crops_of(shape.tiling);
    const auto take_if_fewer = [&](const std::optional<GridSize>& tiling) {
      if (crops_of(tiling) >= fewest || crops_of(tiling) * whole < number) return;
      fewest = crops_of(tiling);
      wanted.tiling = tiling;
    };
    for (int64_t rows = shape.tiling->rows; rows >= 1; --rows)
      for (int64_t cols = shape.tiling->cols; cols >= 1; --cols) take_if_fewer(GridSize{rows, cols});
    take_if_fewer(std::nullopt);
  }
  const int64_t crops = crops_of(wanted.tiling);
  wanted.grid = shrunk(shape.grid, (2 * number + crops) / (2 * crops));
  return wanted;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "resize",
      .options = {keep_ratio(&O::amount,
                             "part of an image's tokens that its smaller picture has, about; this or "
                             "num_kept"),
                  num_kept(&O::amount, "number of tokens of the smaller picture, about; this or keep_ratio"),
                  row_breaks(&O::row_breaks_compete)},
      .steps = [](const O&, const ModelFacts&, const PromptLayout&) { return std::vector<Step>(); },
      .check =
          [](const O& o) {
            if (o.amount.num_kept == 0) throw Error("resize: a picture cannot have num_kept=0 tokens");
          },
      .wanted_shape = wanted_shape};
  return method;
}

}  // namespace

PolicyPtr make_resize(const ResizeOptions& options) {
  return make(method(), options);
}

PolicyRow resize_row() {
  return row(method(), {.paper = "-",
                        .summary = "pictures are made smaller, so that they have fewer tokens",
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"resize:keep_ratio=1/2", /*keeps_tokens=*/false}}});
}

}  // namespace espalier
