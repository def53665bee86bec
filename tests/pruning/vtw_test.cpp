// SPDX-License-Identifier: Apache-2.0
// VTW: where all image tokens leave, and the few that may not.
#include "espalier/policies/vtw.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::run;
using Tokens = std::vector<int64_t>;

std::shared_ptr<const PromptLayout> two_images(std::vector<int64_t> pinned = {}) {
  return LayoutBuilder().text(2, 0).image({2, 2}, 0).text(1, 0).image({1, 3}, 0).text(2, 0).pin(pinned).build(0);
}

TEST(Vtw, EveryImageLeavesBeforeItsLayer) {
  for (const int layer : {0, 1, 7}) {
    const auto points = run(make_vtw({.layer = layer}), facts(8), two_images(), {});
    ASSERT_EQ(points.size(), 1U);
    EXPECT_EQ(points[0].site, "before_layer");
    EXPECT_EQ(points[0].layer, layer);
    EXPECT_TRUE(points[0].kept.empty());
  }
  EXPECT_EQ(test::points_of(make_policy("vtw"), facts(8), *two_images()),
            (std::vector<ActPoint>{{Site::kBeforeLayer, 4}}));
  EXPECT_EQ(test::points_of(make_policy("vtw"), facts(7), *two_images()),
            (std::vector<ActPoint>{{Site::kBeforeLayer, 3}}));
}

TEST(Vtw, TheDepthItselfWithdrawsNothingAndMoreIsRefused) {
  EXPECT_TRUE(test::points_of(make_policy("vtw:layer=8"), facts(8), *two_images()).empty());
  EXPECT_THROW(test::points_of(make_policy("vtw:layer=9"), facts(8), *two_images()), Error);
  EXPECT_THROW(make_policy("vtw:layer=-1"), Error);
  EXPECT_THROW(make_vtw({.layer = -1}), Error);
  EXPECT_THROW(make_policy("vtw:keep_ratio=1/2"), Error);  // takes no amount
}

TEST(Vtw, RowBreaksLeaveWithTheirRows) {
  LayoutBuilder builder;
  builder.text(1, 0);
  builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 1}});
  builder.patches(0, 0, {2, 2}, {0, 0}, 0);
  builder.patches(0, 1, {1, 2}, {0, 0}, 0).row_break(0, 0).patches(0, 1, {1, 2}, {1, 0}, 0).row_break(0, 0);
  PolicyWalk walk(make_policy("vtw"), facts(8), builder.text(2, 0).build(0));
  walk.act({});
  EXPECT_EQ(test::to_vector(walk.layout().source_index), (Tokens{0, 11, 12}));
}

TEST(Vtw, PinnedTokensAndTheFloorOfEachImageStay) {
  EXPECT_EQ(kept_at_end(make_policy("vtw"), facts(8), two_images({4, 8}), {}), (Tokens{4, 8}));
  EXPECT_EQ(kept_at_end(make_policy("vtw:min_per_image=2"), facts(8), two_images({4}), {}), (Tokens{2, 4, 7, 8}));
  EXPECT_TRUE(run(make_policy("vtw:min_tokens=8"), facts(8), two_images(), {}).empty());
  EXPECT_EQ(kept_at_end(make_policy("uniform:num_kept=1 + vtw:layer=5"), facts(8), two_images(), {}), (Tokens{}));
}

TEST(Vtw, SpecIsWrittenBack) {
  EXPECT_EQ(make_policy("vtw")->spec(), "vtw");
  EXPECT_EQ(make_policy("vtw:layer=5,positions=compact")->spec(), "vtw:layer=5,positions=compact");
}

}  // namespace
}  // namespace espalier
