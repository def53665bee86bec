// SPDX-License-Identifier: Apache-2.0
// PruMerge and PruMerge+ against the vectors of docs/specs/prumerge.md, and against a loop in float64.
#include "espalier/policies/prumerge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"
#include "tests/support/prumerge_loops.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

struct Merged {
  std::vector<double> vectors;  // survivors of all crops, then the extra tokens
  Tokens source, position;      // of the image tokens afterwards, in their order
};

Merged merge(const std::string& spec, const std::shared_ptr<const PromptLayout>& prompt, const ArraySignals& arrays) {
  PolicyWalk walk(make_policy(spec), facts(2), prompt);
  std::vector<at::Tensor> signals;
  for (const Signal& s : walk.needs()) signals.push_back(arrays.answer(s, *walk.next(), walk.layout()));
  walk.act(signals);
  EXPECT_TRUE(walk.trace(false)[0].kept.empty());
  EXPECT_TRUE(walk.kept_sources().empty());
  const TokenLayout& after = walk.layout();
  return {test::to_doubles(walk.merged(0)->vectors),
          test::to_vector(after.source_index.index_select(0, after.image_tokens)),
          test::to_vector(after.position_id.index_select(0, after.image_tokens))};
}

void expect_near(const std::vector<double>& got, const std::vector<double>& expected, double tolerance = 1e-5) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], tolerance) << i;
}

// Section 9: twelve patches behind one word.
ArraySignals published() {
  const std::vector<double> a = {.01, .01, .02, .30, .01, .02, .01, .01, .02, .01, .25, .02};
  ArraySignals arrays;
  arrays.joint_attention[3] = Matrix(14, 1);
  arrays.vision_key[3] = arrays.vision_output = Matrix(14, 2);
  for (int64_t j = 0; j < 12; ++j) {
    const auto x = static_cast<double>(j);
    arrays.joint_attention[3].at(j + 1, 0) = a[static_cast<size_t>(j)];
    arrays.vision_output.at(j + 1, 0) = x;
    arrays.vision_output.at(j + 1, 1) = 11 - x;
    arrays.vision_key[3].at(j + 1, 0) = std::cos(0.5 * x);
    arrays.vision_key[3].at(j + 1, 1) = std::sin(0.5 * x);
  }
  return arrays;
}

TEST(Prumerge, VectorsOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({3, 4}, 0).text(1, 0).build(0);
  const Merged plain = merge("prumerge:neighbours=2", prompt, published());
  expect_near(plain.vectors, {3.08, 8.25, 10.31, 1.02, 0.79, 0.75});
  EXPECT_EQ(plain.source, (Tokens{4, 11, -1}));  // patches 3 and 10, the rest behind
  EXPECT_EQ(plain.position, (Tokens{4, 11, 12}));
  const Merged plus = merge("prumerge+:neighbours=2", prompt, published());
  expect_near(plus.vectors,
              {0.23, 11.1, 2.91, 11.5, 3.08, 8.25, 5, 9.52, 6.17, 5.16, 8.16, 3.06, 10.31, 1.02, 0.49, 0.28});
  EXPECT_EQ(plus.source, (Tokens{1, 3, 4, 5, 7, 9, 11, -1}));
  EXPECT_EQ(merge("prumerge:neighbours=2,extra_token=false", prompt, published()).source, (Tokens{4, 11}));
  EXPECT_EQ(merge("prumerge:num_kept=3,neighbours=2", prompt, published()).source, (Tokens{4, 11, -1}));
  // No neighbours: survivors as they are.
  expect_near(merge("prumerge:neighbours=0,extra_token=false", prompt, published()).vectors, {3, 8, 10, 1});
}

TEST(Prumerge, NothingStandsOutOfEqualAttention) {
  const auto prompt = LayoutBuilder().text(1, -1).image({3, 4}, 0).text(1, 0).build(0);
  ArraySignals equal = published();
  for (double& a : equal.joint_attention[3].values) a = 1.0 / 13;
  EXPECT_EQ(merge("prumerge", prompt, equal).source, (Tokens{1, -1}));
  EXPECT_EQ(merge("prumerge+", prompt, equal).source, (Tokens{1, 5, 9, -1}));  // stride 12 / 3
}

// An image of one crop, and one with two tiles of which un-padding cut a column; crops enter one behind the other.
TEST(Prumerge, CropsEqualTheLoops) {
  LayoutBuilder builder;
  builder.image({5, 6}, 0).text(1, 0);
  builder.layout().images.push_back({.grid = {4, 4}, .tiling = GridSize{1, 2}, .crop_boxes = {}});
  builder.patches(1, 0, {4, 4}, {0, 0}, 1);
  for (int64_t row = 0; row < 4; ++row)
    builder.patches(1, 1, {1, 4}, {row, 0}, 1).patches(1, 2, {1, 3}, {row, 0}, 1).row_break(1, 1);
  const auto prompt = builder.text(2, 1).build(1);
  std::vector<Tokens> crops(4);
  for (const Segment& s : prompt->segments)
    for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
      crops[static_cast<size_t>(s.image == 0 ? 0 : 1 + s.crop)].push_back(t);
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 6, seed);
    for (const bool plus : {false, true})
      for (const int64_t budget : {0, 1, 6}) {
        const std::string spec = std::string(plus ? "prumerge+" : "prumerge") + ":neighbours=5" +
                                 (budget ? ",num_kept=" + std::to_string(budget) : "");
        const Merged got = merge(spec, prompt, arrays);
        std::vector<double> vectors, extras;
        Tokens source, position;
        for (const Tokens& crop : crops) {
          const test::PrumergeLoops expected = test::prumerge_loops(arrays, 3, crop, budget, plus, 5);
          vectors.insert(vectors.end(), expected.survivors.begin(), expected.survivors.end());
          extras.insert(extras.end(), expected.extra.begin(), expected.extra.end());
          source.insert(source.end(), expected.chosen.begin(), expected.chosen.end());
          source.push_back(-1);
          position.insert(position.end(), expected.chosen.begin(), expected.chosen.end());
          position.push_back(crop.back());
        }
        vectors.insert(vectors.end(), extras.begin(), extras.end());
        expect_near(got.vectors, vectors);
        EXPECT_EQ(got.source, source) << spec;
        EXPECT_EQ(got.position, position) << spec;
      }
  }
}

TEST(Prumerge, PinsAndFloorsStay) {
  const auto prompt = LayoutBuilder().image({4, 4}, 0).text(1, 0).image({4, 4}, 1).text(1, 1).pin({7, 20}).build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 6, seed);
    for (const char* spec : {"prumerge", "prumerge+", "prumerge:num_kept=3", "prumerge+:num_kept=4"}) {
      const Tokens source = merge(spec, prompt, arrays).source;
      EXPECT_TRUE(std::ranges::count(source, 7) && std::ranges::count(source, 20)) << spec;
    }
    const Tokens more = merge("prumerge:min_per_image=9,extra_token=false", prompt, arrays).source;
    EXPECT_GE(std::ranges::count_if(more, [](int64_t t) { return t < 16; }), 9);
    EXPECT_GE(std::ranges::count_if(more, [](int64_t t) { return t > 16; }), 9);
  }
}

TEST(Prumerge, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).pin({1, 2}).build(0);
  EXPECT_THROW(test::points_of(make_policy("prumerge:num_kept=2"), facts(2), *prompt), Error);  // the rest needs one
  EXPECT_EQ(test::points_of(make_policy("prumerge:num_kept=3"), facts(2), *prompt).size(), 1U);
  EXPECT_THROW(test::points_of(make_policy("prumerge:layer_attention=4"), facts(2), *prompt), Error);
  EXPECT_THROW(make_policy("prumerge:neighbours=-1"), Error);
  EXPECT_THROW(make_policy("prumerge:keep_ratio=1/2,num_kept=4"), Error);
  ModelFacts model = facts(2);
  model.has_class_token = false;
  EXPECT_THROW(test::points_of(make_policy("prumerge"), model, *prompt), Error);
  EXPECT_TRUE(test::points_of(make_policy("prumerge"), facts(2), *LayoutBuilder().text(2, 0).build(0)).empty());
  for (const char* spec : {"prumerge", "prumerge+:num_kept=9,neighbours=3,extra_token=false,layer_attention=1"})
    EXPECT_EQ(make_policy(spec)->spec(), spec);
}

}  // namespace
}  // namespace espalier
