// SPDX-License-Identifier: Apache-2.0
// VisionZip against the vector of docs/specs/visionzip.md and its invariants.
#include "espalier/policies/visionzip.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

struct Zipped {
  Tokens kept, source, position;  // of the image tokens afterwards
  std::vector<double> vectors;    // class rows, then contextual tokens
};

Zipped zip(const std::string& spec, const std::shared_ptr<const PromptLayout>& prompt, const ArraySignals& arrays,
           int heads = 1) {
  ModelFacts model = facts(2);
  model.vision_heads = heads;
  PolicyWalk walk(make_policy(spec), model, prompt);
  std::vector<at::Tensor> signals;
  for (const Signal& s : walk.needs()) signals.push_back(arrays.answer(s, *walk.next(), walk.layout()));
  walk.act(signals);
  const TokenLayout& after = walk.layout();
  return {walk.trace(false)[0].kept, test::to_vector(after.source_index.index_select(0, after.image_tokens)),
          test::to_vector(after.position_id.index_select(0, after.image_tokens)),
          walk.merged(0) ? test::to_doubles(walk.merged(0)->vectors) : std::vector<double>{}};
}

// Section 9: nine patches behind one word; the vision arrays count tokens of the sequence.
ArraySignals published() {
  const std::vector<double> a = {.05, .20, .01, .02, .10, .03, .04, .02, .01};
  ArraySignals arrays;
  arrays.class_attention[2] = Matrix(11, 1);
  arrays.vision_key[2] = arrays.vision_output = Matrix(11, 2);
  arrays.vision_class = {{0, 10}};
  for (int64_t j = 0; j < 9; ++j) {  // row i = j + 1 of the specification
    const auto i = static_cast<double>(j + 1);
    arrays.class_attention[2].at(j + 1, 0) = a[static_cast<size_t>(j)];
    arrays.vision_output.at(j + 1, 0) = i;
    arrays.vision_output.at(j + 1, 1) = 10 - i;
    arrays.vision_key[2].at(j + 1, 0) = std::cos(0.4 * i);
    arrays.vision_key[2].at(j + 1, 1) = std::sin(0.4 * i);
  }
  return arrays;
}

TEST(Visionzip, VectorOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({3, 3}, 0).text(1, 0).build(0);
  const Zipped got = zip("visionzip:num_kept=6,contextual=2", prompt, published());
  EXPECT_EQ(got.kept, (Tokens{1, 2, 5}));              // patches 0, 1 and 4
  EXPECT_EQ(got.source, (Tokens{-1, 1, 2, 5, 3, 7}));  // class row in front, targets 2 and 6 behind
  EXPECT_EQ(got.position, (Tokens{1, 1, 2, 5, 3, 7}));
  const std::vector<double> expected = {0, 10, 7, 13, 44.0 / 3, 16.0 / 3};
  ASSERT_EQ(got.vectors.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(got.vectors[i], expected[i], 1e-5);
  EXPECT_EQ(zip("visionzip:num_kept=6,contextual=0", prompt, published()).kept, (Tokens{1, 2, 5, 6, 7}));
}

// Each image: the class row, its best patches, and targets whose vectors hold all the rest.
TEST(Visionzip, CountsAndSumsHoldInEachImage) {
  const auto prompt = LayoutBuilder().image({4, 4}, 0).text(1, 0).image({4, 5}, 1).text(1, 1).build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 6, seed);
    const Zipped got = zip("visionzip:num_kept=8,contextual=1", prompt, arrays, 3);
    ASSERT_EQ(got.kept.size(), 12U);
    ASSERT_EQ(got.vectors.size(), 4U * 6);
    int64_t first = 0;
    for (size_t image = 0; image < 2; ++image) {
      const int64_t size = image == 0 ? 16 : 20;
      Tokens rest;
      for (int64_t t = first; t < first + size; ++t)
        if (!std::binary_search(got.kept.begin(), got.kept.end(), t)) rest.push_back(t);
      ASSERT_EQ(static_cast<int64_t>(rest.size()), size - 6);
      const Tokens members(rest.begin() + 1, rest.end());
      const std::vector<double> mean = test::mean_of(arrays.vision_output, members);
      for (int64_t c = 0; c < 6; ++c) {
        EXPECT_NEAR(got.vectors[image * 6 + static_cast<size_t>(c)],
                    arrays.vision_class.at(static_cast<int64_t>(image), c), 1e-6);
        EXPECT_NEAR(got.vectors[(2 + image) * 6 + static_cast<size_t>(c)],
                    arrays.vision_output.at(rest[0], c) + mean[static_cast<size_t>(c)], 1e-5);
      }
      first += size + 1;
    }
  }
}

// Tiles that stand stitched enter one behind the other, each behind its class row; row breaks leave.
TEST(Visionzip, CropsOfAnImageStandBehindEachOther) {
  LayoutBuilder builder;
  builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 2}, .crop_boxes = {}});
  builder.text(1, -1).patches(0, 0, {2, 2}, {0, 0}, 0);
  for (int64_t row = 0; row < 2; ++row)
    builder.patches(0, 1, {1, 2}, {row, 0}, 0).patches(0, 2, {1, 2}, {row, 0}, 0).row_break(0, 0);
  const auto prompt = builder.text(1, 0).build(0);
  ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 6, 5);
  std::ranges::fill(arrays.class_attention[2].values, 0.1);  // ties: the first stay
  const Zipped got = zip("visionzip:num_kept=4,contextual=0", prompt, arrays, 3);
  EXPECT_EQ(got.source, (Tokens{-1, 1, 2, 3, -1, 5, 6, 10, -1, 7, 8, 12}));
  EXPECT_EQ(got.position, (Tokens{1, 1, 2, 3, 5, 5, 6, 10, 7, 7, 8, 12}));
  EXPECT_EQ(got.kept, (Tokens{1, 2, 3, 5, 6, 7, 8, 10, 12}));
  EXPECT_EQ(zip("visionzip:num_kept=0", prompt, arrays).source, Tokens{});
}

TEST(Visionzip, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  for (const char* spec : {"visionzip:num_kept=3,contextual=3", "visionzip:num_kept=3,layer_attention=4"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(2), *prompt), Error) << spec;
  ModelFacts model = facts(2);
  model.has_class_token = false;
  EXPECT_THROW(test::points_of(make_policy("visionzip:num_kept=3"), model, *prompt), Error);
}

}  // namespace
}  // namespace espalier
