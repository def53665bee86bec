// SPDX-License-Identifier: Apache-2.0
// HiRED against the vectors of docs/specs/hired.md: a full view and 2 x 2 tiles of 4 x 4 patches, attentions of
// integers.
#include "espalier/policies/hired.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;
using Crops = std::vector<Tokens>;

std::shared_ptr<const PromptLayout> tiled(GridSize tiling) {
  LayoutBuilder builder;
  builder.layout().images.push_back({.grid = {4, 4}, .tiling = tiling});
  builder.patches(0, 0, {4, 4}, {0, 0}, 0);
  for (int64_t row = 0; row < 4 * tiling.rows; ++row) {
    for (int64_t col = 0; col < tiling.cols; ++col)
      builder.patches(0, static_cast<int>(1 + row / 4 * tiling.cols + col), {1, 4}, {row % 4, 0}, 0);
    builder.row_break(0, 0);
  }
  return builder.text(1, 0).build(0);
}

// Crop and place in it of each token of the unpruned sequence.
struct Places {
  Tokens crop, row, col;
  explicit Places(const PromptLayout& prompt)
      : crop(test::to_vector(prompt.crop)),
        row(test::to_vector(prompt.grid_row)),
        col(test::to_vector(prompt.grid_col)) {}
  int64_t ordinal(size_t t) const { return row[t] * 4 + col[t]; }
};

// The specification's attentions in the last layer that is read; in layer 0 those of the full view matter.
ArraySignals integers(const PromptLayout& prompt) {
  const Places places(prompt);
  Matrix a(prompt.num_tokens, 2);
  for (int64_t t = 0; t < prompt.num_tokens; ++t)
    for (int64_t h = 0; h < 2; ++h) {
      const int64_t j = places.ordinal(t);
      if (places.crop[t] >= 0) a.at(t, h) = static_cast<double>((5 * places.crop[t] + 3 * h + 7 * j + j * j) % 11 + 1);
    }
  ArraySignals arrays;
  arrays.class_attention[0] = arrays.class_attention[2] = a;
  return arrays;
}

// Kept places of each crop.
Crops kept(const std::string& spec, const std::shared_ptr<const PromptLayout>& prompt, const ArraySignals& arrays) {
  const Places places(*prompt);
  Crops crops(5);
  for (const int64_t t : test::kept_at_end(make_policy(spec), facts(2), prompt, arrays)) {
    EXPECT_GE(places.crop[t], 0) << "a row break stayed";
    crops[places.crop[t]].push_back(places.ordinal(t));
  }
  return crops;
}

TEST(Hired, VectorsOfTheSpecification) {
  const auto prompt = tiled({2, 2});
  const ArraySignals arrays = integers(*prompt);
  EXPECT_EQ(kept("hired:keep_ratio=1/5", prompt, arrays),
            (Crops{{1, 2, 3, 5, 7, 8, 10, 13}, {6}, {1, 3}, {6, 9}, {1}}));
  const Tokens all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  EXPECT_EQ(kept("hired:keep_ratio=2/5", prompt, arrays),
            (Crops{all, {0, 6, 9}, {1, 3, 12, 14}, {0, 4, 6, 9}, {1, 3, 12}}));
  EXPECT_EQ(kept("hired:keep_ratio=3/5", prompt, arrays), (Crops{all,
                                                                 {0, 4, 6, 9, 11, 15},
                                                                 {0, 1, 2, 3, 4, 11, 12, 13, 14},
                                                                 {0, 4, 5, 6, 7, 9, 10, 11, 15},
                                                                 {1, 2, 3, 12, 13, 14}}));
  const Crops strips = kept("hired:keep_ratio=1/5,allocation=count_strips", prompt, arrays);
  EXPECT_EQ(strips[1], (Tokens{0, 6, 9}));
  for (const auto& [crop, number] : {std::pair(0, 8), {1, 3}, {2, 2}, {3, 2}, {4, 1}})
    EXPECT_EQ(strips[crop].size(), static_cast<size_t>(number));
  EXPECT_EQ(kept("hired:num_kept=16", prompt, arrays), kept("hired:keep_ratio=1/5", prompt, arrays));
}

TEST(Hired, OneCropKeepsItsBest) {
  const auto prompt = LayoutBuilder().text(1, -1).image({4, 4}, 0).text(1, 0).build(0);
  EXPECT_EQ(kept("hired:keep_ratio=1/4", prompt, integers(*prompt))[0], (Tokens{2, 5, 10, 13}));
}

// Attention on a corner of the full view alone: the tile that shows it gets all that tiles get.
TEST(Hired, RegionsFollowTheTiling) {
  for (const auto& [tiling, corner, tile] : std::vector<std::tuple<GridSize, Tokens, int>>{{{2, 2}, {0, 1, 4, 5}, 1},
                                                                                           {{2, 2}, {2, 3, 6, 7}, 2},
                                                                                           {{1, 2}, {2, 3, 6, 7}, 2},
                                                                                           {{2, 1}, {2, 3, 6, 7}, 1}}) {
    const auto prompt = tiled(tiling);
    ArraySignals arrays = integers(*prompt);
    arrays.class_attention[0] = Matrix(prompt->num_tokens, 2);
    for (const int64_t t : corner) arrays.class_attention[0].at(t, 0) = 1;
    const Crops crops = kept("hired:num_kept=16", prompt, arrays);
    for (int i = 1; i < 5; ++i) EXPECT_EQ(crops[i].size(), i == tile ? 8U : 0U);
  }
}

TEST(Hired, WhatCannotBeServedIsRefused) {
  const auto prompt = tiled({2, 2});
  EXPECT_TRUE(test::points_of(make_policy("hired:keep_ratio=1"), facts(2), *prompt).empty());
  ModelFacts model = facts(2);
  EXPECT_THROW(test::points_of(make_policy("hired:keep_ratio=1/2,layer_final=4"), model, *prompt), Error);
  model.has_class_token = false;
  EXPECT_THROW(test::points_of(make_policy("hired:keep_ratio=1/2"), model, *prompt), Error);
  EXPECT_THROW(make_policy("hired:keep_ratio=1/2,alpha=3/2"), Error);
  EXPECT_THROW(make_policy("hired"), Error);
}

}  // namespace
}  // namespace espalier
