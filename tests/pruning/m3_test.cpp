// SPDX-License-Identifier: Apache-2.0
// M3 against the vector of docs/specs/m3.md and means in plain float64 loops.
#include "espalier/policies/m3.h"

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

struct Merged {
  std::vector<double> vectors;  // new rows in the order of the sequence
  Tokens source, position;      // of the image tokens that are there afterwards
};

Merged merge(const std::string& spec, const std::shared_ptr<const PromptLayout>& prompt, const ArraySignals& arrays) {
  PolicyWalk walk(make_policy(spec), facts(2), prompt);
  std::vector<at::Tensor> signals;
  for (const Signal& s : walk.needs()) signals.push_back(arrays.answer(s, *walk.next(), walk.layout()));
  walk.act(signals);
  EXPECT_TRUE(walk.trace(false)[0].kept.empty());
  const TokenLayout& after = walk.layout();
  return {test::to_doubles(walk.merged(0)->vectors),
          test::to_vector(after.source_index.index_select(0, after.image_tokens)),
          test::to_vector(after.position_id.index_select(0, after.image_tokens))};
}

TEST(M3, VectorOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({6, 6}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.hidden[0] = Matrix(38, 1);
  for (int64_t t = 0; t < 36; ++t) arrays.hidden[0].at(t + 1, 0) = static_cast<double>(t);
  const Merged nine = merge("m3:num_kept=9", prompt, arrays);
  EXPECT_EQ(nine.vectors, (std::vector<double>{3.5, 5.5, 7.5, 15.5, 17.5, 19.5, 27.5, 29.5, 31.5}));
  EXPECT_EQ(nine.source, (Tokens{1, 3, 5, 13, 15, 17, 25, 27, 29}));
  EXPECT_EQ(nine.position, nine.source);
  EXPECT_EQ(merge("m3:keep_ratio=1/4", prompt, arrays).vectors, nine.vectors);
  EXPECT_EQ(merge("m3:num_kept=1", prompt, arrays).vectors, (std::vector<double>{17.5}));
  EXPECT_EQ(merge("m3:num_kept=9,positions=compact", prompt, arrays).position, (Tokens{1, 2, 3, 4, 5, 6, 7, 8, 9}));
}

TEST(M3, CellsEqualTheLoopsInEachImageAndTile) {
  LayoutBuilder builder;
  builder.image({4, 2}, 0).text(1, 0);
  builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 2}});
  builder.patches(1, 0, {2, 2}, {0, 0}, 1);
  for (int64_t row = 0; row < 2; ++row)  // the right column of the right tile is cut away
    builder.patches(1, 1, {1, 2}, {row, 0}, 1).patches(1, 2, {1, 1}, {row, 0}, 1).row_break(1, 1);
  const auto prompt = builder.text(1, 1).build(1);
  const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 5, 4);
  const std::vector<Tokens> cells = {{0, 1, 2, 3}, {4, 5, 6, 7}, {9, 10, 11, 12}, {13, 14, 17, 18}, {15, 19}};
  const Merged got = merge("m3:keep_ratio=1/4", prompt, arrays);
  ASSERT_EQ(got.vectors.size(), cells.size() * 5);
  for (size_t i = 0; i < cells.size(); ++i) {
    EXPECT_EQ(got.source[i], cells[i][0]);
    const std::vector<double> mean = test::mean_of(arrays.hidden.at(0), cells[i]);
    for (size_t c = 0; c < 5; ++c) EXPECT_NEAR(got.vectors[i * 5 + c], mean[c], 1e-6);
  }
}

TEST(M3, KeepingAllActsNowhereAndWhatTheGridForbidsIsRefused) {
  const auto prompt = LayoutBuilder().image({6, 6}, 0).text(1, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy("m3:keep_ratio=1"), facts(2), *prompt).empty());
  EXPECT_TRUE(test::points_of(make_policy("m3:num_kept=999"), facts(2), *prompt).empty());
  EXPECT_TRUE(test::points_of(make_policy("m3:num_kept=4"), facts(2), *LayoutBuilder().text(3, 0).build(0)).empty());
  for (const char* spec : {"m3:num_kept=0", "m3:num_kept=2", "m3:num_kept=18", "m3:keep_ratio=1/5",
                           "m3:keep_ratio=1/16", "m3:num_kept=4,min_per_image=5"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(2), *prompt), Error) << spec;
  const auto pinned = LayoutBuilder().image({6, 6}, 0).text(1, 0).pin({3}).build(0);
  EXPECT_THROW(test::points_of(make_policy("m3:num_kept=9"), facts(2), *pinned), Error);
  EXPECT_TRUE(test::points_of(make_policy("m3:keep_ratio=1"), facts(2), *pinned).empty());
}

}  // namespace
}  // namespace espalier
