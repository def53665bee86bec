// SPDX-License-Identifier: Apache-2.0
// Kept sets from outside: applied as they are, refused where they contradict the request.
#include "espalier/policies/keepmask.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;
using test::LayoutBuilder;
using Tokens = std::vector<int64_t>;

PolicyPtr masks(std::vector<KeptPoint> points, const CommonOptions& common = {}, bool with_row_breaks = false) {
  return make_keepmask({.sets = {.file = "kept.json", .points = std::move(points)},
                        .row_breaks_compete = with_row_breaks,
                        .common = common});
}
KeptPoint before(int layer, const Tokens& kept) {
  return {{Site::kBeforeLayer, layer}, kept, {}};
}

std::shared_ptr<const PromptLayout> two_images() {
  return LayoutBuilder().text(1, -1).image({2, 3}, 0).text(1, 0).image({1, 2}, 1).text(1, 1).build(1);
}

TEST(Keepmask, AppliesItsSetsInTurn) {
  const auto points =
      test::run(masks({{{Site::kProjectorOutput}, {1, 2, 4, 6, 8, 9}, {}}, before(2, {2, 6, 9}), before(5, {})}),
                facts(8), two_images(), {});
  ASSERT_EQ(points.size(), 3U);
  EXPECT_EQ(points[0].kept, (Tokens{1, 2, 4, 6, 8, 9}));
  EXPECT_EQ(points[1].kept, (Tokens{2, 6, 9}));
  EXPECT_EQ(points[2].kept, Tokens{});
}

TEST(Keepmask, CachesHaveAListForEachHead) {
  const KeptPoint cache{{Site::kCache, 3}, {}, {{1, 2}, {6, 9}}};
  const auto points = test::run(masks({cache}), facts(8), two_images(), {});
  EXPECT_EQ(points.at(0).kept_per_head, (std::vector<Tokens>{{1, 2}, {6, 9}}));
  EXPECT_THROW(test::points_of(masks({{{Site::kCache, 3}, {}, {{1, 2}}}}), facts(8), *two_images()), Error);
  EXPECT_THROW(test::points_of(masks({{{Site::kCache, 3}, {}, {{1, 2}, {1}}}}), facts(8), *two_images()), Error);
}

TEST(Keepmask, SetsThatKeepAllActNowhere) {
  EXPECT_TRUE(test::points_of(masks({before(2, {1, 2, 3, 4, 5, 6, 8, 9})}), facts(8), *two_images()).empty());
  EXPECT_TRUE(test::points_of(masks({}), facts(8), *two_images()).empty());
}

TEST(Keepmask, RowBreaksAreListedOnlyWhereTheyCompete) {
  LayoutBuilder builder;
  builder.layout().images.push_back({.grid = {1, 2}, .tiling = GridSize{1, 1}, .crop_boxes = {}});
  const auto prompt =
      builder.patches(0, 0, {1, 2}, {0, 0}, 0).patches(0, 1, {1, 2}, {0, 0}, 0).row_break(0, 0).text(1, 0).build(0);
  EXPECT_THROW(test::points_of(masks({before(2, {0, 4})}), facts(8), *prompt), Error);
  EXPECT_EQ(test::run(masks({before(2, {0, 4})}, {}, true), facts(8), prompt, {}).at(0).kept, (Tokens{0, 4}));
}

TEST(Keepmask, WhatContradictsTheRequestIsRefused) {
  for (const Tokens& wrong : {Tokens{0}, Tokens{7}, Tokens{10}, Tokens{11}, Tokens{1, 400}})
    EXPECT_THROW(test::points_of(masks({before(2, wrong)}), facts(8), *two_images()), Error);
  EXPECT_THROW(test::points_of(masks({before(2, {1}), before(3, {1, 2})}), facts(8), *two_images()),
               Error);  // 2 has left
  EXPECT_THROW(test::points_of(masks({before(2, {1, 8})}, {.min_per_image = 2}), facts(8), *two_images()), Error);
}

TEST(Keepmask, PinnedTokensMustBeKept) {
  const auto prompt = LayoutBuilder().image({2, 2}, 0).text(1, 0).pin({2}).build(0);
  EXPECT_THROW(test::points_of(masks({before(2, {0, 1})}), facts(8), *prompt), Error);
  EXPECT_EQ(test::points_of(masks({before(2, {0, 2})}), facts(8), *prompt).size(), 1U);
}

}  // namespace
}  // namespace espalier
