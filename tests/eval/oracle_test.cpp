// SPDX-License-Identifier: Apache-2.0
#include "eval/oracle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier::eval {
namespace {

using synth::Cover;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;

constexpr Cover kNothing{}, kSpot{Cover::By::kSpot}, kObject0{Cover::By::kObject, 0}, kObject1{Cover::By::kObject, 1},
    kGrey{Cover::By::kDistractor}, kStroke{Cover::By::kClutter};
const std::vector<Cover> kCovers = {kStroke, kObject1, kNothing, kObject0, kGrey, kObject1, kSpot, kObject0, kObject1};

synth::Turn turn_with_two_objects(std::optional<Cover> asked) {
  synth::Turn turn;
  turn.scene.objects.resize(2);
  turn.asked = asked;
  return turn;
}

TEST(Oracle, WhatIsAskedAboutComesFirst) {
  EXPECT_EQ(by_need(kCovers, turn_with_two_objects(kObject0)), (std::vector<int>{3, 7, 6, 1, 5, 8, 4, 0, 2}));
  EXPECT_EQ(by_need(kCovers, turn_with_two_objects(kSpot)), (std::vector<int>{6, 3, 1, 7, 5, 8, 4, 0, 2}));
  EXPECT_EQ(by_need(kCovers, turn_with_two_objects(std::nullopt)), (std::vector<int>{6, 3, 1, 7, 5, 8, 4, 0, 2}));
}

TEST(Oracle, KeepsTheAskedPatchesOfEveryImage) {
  const auto cell = synth::select_cells(std::vector<std::string>{"bind/spot-2x1"}).at(0);
  for (uint64_t index = 0; index < 10; ++index) {
    const auto item = std::make_shared<synth::Item>(make_item(cell, synth::Split::kTest, 0, index, {true, true}));
    LayoutBuilder builder;
    for (int i = 0; i < 3; ++i) builder.text(2, i).image({8, 8}, i).text(5, i);
    const auto policy = make_oracle({.amount = {.keep_ratio = Fraction{1, 9}, .num_kept = {}}}, item);
    const auto kept = kept_at_end(policy, facts(4), builder.build(2), {});
    EXPECT_EQ(kept.size(), 3u * 7);
    const std::set<int64_t> set(kept.begin(), kept.end());
    for (int i = 0; i < 3; ++i) {
      const auto covers = patch_covers(draw(item->turns[static_cast<size_t>(i)].scene), 8, 8);
      for (int64_t patch = 0; patch < 64; ++patch)
        if (covers[static_cast<size_t>(patch)] == kSpot) {
          EXPECT_TRUE(set.contains(71 * i + 2 + patch));
        }
    }
  }
}

// Two objects named by examples: what is asked must not show in what is kept.
TEST(Oracle, KnowingTheSceneTreatsItsObjectsAlike) {
  const auto cell = synth::select_cells(std::vector<std::string>{"define/colour-of"}).at(0);
  for (uint64_t index = 0; index < 10; ++index) {
    const auto item = std::make_shared<synth::Item>(make_item(cell, synth::Split::kTest, 0, index, {true, true}));
    const auto prompt = LayoutBuilder().image({8, 8}, 0).image({8, 8}, 1).image({8, 8}, 2).build(2);
    const auto covers = patch_covers(draw(item->query().scene), 8, 8);
    for (const bool knows_question : {true, false}) {
      const auto policy =
          make_oracle({.amount = {.keep_ratio = {}, .num_kept = 6}, .knows_question = knows_question}, item);
      std::map<int, int> patches;  // object of the query -> patches kept
      for (const int64_t token : kept_at_end(policy, facts(4), prompt, {}))
        if (token >= 128 && covers[static_cast<size_t>(token - 128)].by == Cover::By::kObject)
          ++patches[covers[static_cast<size_t>(token - 128)].object];
      if (knows_question) {
        EXPECT_GE(patches[item->query().asked->object], 3);
      } else {
        EXPECT_EQ(patches, (std::map<int, int>{{0, 2}, {1, 2}, {2, 2}}));
      }
    }
  }
}

// Two things that a question needs share a picture's budget, on earlier screens too; a mark is a part of its object.
TEST(Oracle, KeepsWhatAnItemNeedsOfACrowdAndOfEveryScreen) {
  for (const char* name : {"crowded/spot-of", "screens/changed", "screens/before"}) {
    const auto cell = synth::select_cells(std::vector<std::string>{name}).at(0);
    for (uint64_t index = 0; index < 6; ++index) {
      const auto item = std::make_shared<synth::Item>(make_item(cell, synth::Split::kTest, 0, index, {true, true}));
      LayoutBuilder builder;
      for (int i = 0; i < cell.num_turns(); ++i) builder.image({12, 12}, i);
      const auto policy = make_oracle({.amount = {.keep_ratio = Fraction{1, 9}, .num_kept = {}}}, item);
      const auto kept = kept_at_end(policy, facts(4), builder.build(cell.num_turns() - 1), {});
      EXPECT_EQ(kept.size(), 16u * item->turns.size());
      for (size_t t = 0; t < item->turns.size(); ++t) {
        const synth::Turn& turn = item->turns[t];
        const auto covers = patch_covers(draw(turn.scene, 84), 12, 12);
        for (const Cover thing : turn.needed) {
          int64_t patches = 0, held = 0;
          for (int64_t p = 0; p < 144; ++p) {
            const Cover c = covers[static_cast<size_t>(p)];
            const bool is_mark_on_it = c.by == Cover::By::kMark && c.object == thing.object;
            const bool is_part = c == thing || (thing.by == Cover::By::kObject && is_mark_on_it);
            patches += is_part;
            held += is_part && std::ranges::count(kept, 144 * static_cast<int64_t>(t) + p) > 0;
          }
          EXPECT_GE(2 * held, patches) << name << " " << index << " turn " << t;
          EXPECT_GE(held, 1);
        }
      }
    }
  }
}

TEST(Oracle, RefusesOtherRequests) {
  const auto item =
      std::make_shared<synth::Item>(make_item(synth::all_cells()[0], synth::Split::kTest, 0, 0, {}));  // one picture
  const auto policy = make_oracle({.amount = {.keep_ratio = Fraction{1, 2}, .num_kept = {}}}, item);
  EXPECT_THROW(test::points_of(policy, facts(4), *LayoutBuilder().image({2, 2}, 0).image({2, 2}, 0).build(0)), Error);
}

TEST(Oracle, ReadsItsAmount) {
  EXPECT_EQ(parse_oracle("oracle:keep_ratio=2/9")->amount.keep_ratio, (Fraction{2, 9}));
  EXPECT_TRUE(parse_oracle("oracle:keep_ratio=2/9")->knows_question);
  EXPECT_FALSE(parse_oracle("oracle:keep_ratio=2/9,knows=scene")->knows_question);
  EXPECT_EQ(parse_oracle("oracle:num_kept=7")->amount.num_kept, 7);
  EXPECT_FALSE(parse_oracle("random:keep_ratio=2/9"));
  for (const char* bad : {"oracle", "oracle:keep_ratio=0", "oracle:layer=3", "oracle:num_kept=3,knows=all",
                          "oracle:keep_ratio=1/2,num_kept=3"})
    EXPECT_THROW(parse_oracle(bad), Error) << bad;
}

}  // namespace
}  // namespace espalier::eval
