// SPDX-License-Identifier: Apache-2.0
// The shapes that resize asks for: about the wanted number of tokens, sides in proportion, tiles before grids.
#include "espalier/policies/resize.h"

#include <gtest/gtest.h>

#include <cmath>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;

ImageShape wanted(const std::string& spec, GridSize grid, std::optional<GridSize> tiling = {}) {
  return make_policy(spec)->wanted_shape(facts(4), {.grid = grid, .tiling = tiling, .crop_boxes = {}});
}

TEST(Resize, SquareTowersGetSquares) {
  EXPECT_EQ(wanted("resize:keep_ratio=1/4", {24, 24}).grid, (GridSize{12, 12}));
  EXPECT_EQ(wanted("resize:keep_ratio=1/9", {24, 24}).grid, (GridSize{8, 8}));
  EXPECT_EQ(wanted("resize:keep_ratio=2/9", {24, 24}).grid, (GridSize{11, 11}));  // 121 of 128
  EXPECT_EQ(wanted("resize:num_kept=1", {24, 24}).grid, (GridSize{1, 1}));
  EXPECT_EQ(wanted("resize:keep_ratio=1", {24, 24}).grid, (GridSize{24, 24}));
  EXPECT_EQ(wanted("resize:num_kept=9999", {24, 24}).grid, (GridSize{24, 24}));
}

TEST(Resize, OtherGridsKeepTheirProportion) {
  for (const GridSize grid : {GridSize{10, 37}, GridSize{36, 20}, GridSize{1, 50}, GridSize{7, 5}})
    for (const double ratio : {0.75, 0.5, 0.25, 0.1}) {
      const GridSize got = wanted("resize:keep_ratio=" + std::to_string(ratio), grid).grid;
      EXPECT_LE(got.rows, grid.rows);
      EXPECT_LE(got.cols, grid.cols);
      const double scale = std::sqrt(ratio);
      EXPECT_LE(std::abs(static_cast<double>(got.rows) - scale * static_cast<double>(grid.rows)), 1.1);
      EXPECT_LE(std::abs(static_cast<double>(got.cols) - scale * static_cast<double>(grid.cols)), 1.1);
    }
}

TEST(Resize, TilesLeaveFirst) {
  const ImageShape half = wanted("resize:keep_ratio=3/5", {24, 24}, GridSize{2, 2});
  EXPECT_EQ(half.grid, (GridSize{24, 24}));
  EXPECT_EQ(half.tiling->rows * half.tiling->cols, 2);
  const ImageShape fifth = wanted("resize:keep_ratio=1/5", {24, 24}, GridSize{2, 2});
  EXPECT_EQ(fifth.grid, (GridSize{24, 24}));
  EXPECT_FALSE(fifth.tiling.has_value());
  const ImageShape tenth = wanted("resize:keep_ratio=1/20", {24, 24}, GridSize{2, 2});
  EXPECT_EQ(tenth.grid, (GridSize{12, 12}));
  EXPECT_FALSE(tenth.tiling.has_value());
  const ImageShape between = wanted("resize:keep_ratio=1/2", {24, 24}, GridSize{2, 2});  // 1440 = 3 crops of 480
  EXPECT_EQ(between.tiling->rows * between.tiling->cols, 2);
  EXPECT_EQ(between.grid, (GridSize{22, 22}));
}

TEST(Resize, ActsAtNoPointAndNeedsAnAmount) {
  const auto prompt = test::LayoutBuilder().image({4, 4}, 0).text(1, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy("resize:keep_ratio=1/4"), facts(4), *prompt).empty());
  EXPECT_THROW(make_policy("resize"), Error);
  EXPECT_THROW(make_policy("resize:num_kept=0"), Error);
}

}  // namespace
}  // namespace espalier
