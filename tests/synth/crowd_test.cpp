// SPDX-License-Identifier: Apache-2.0
#include "synth/crowd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "synth/items.h"
#include "tests/synth/outlines.h"
#include "tests/synth/pixels.h"
#include "tests/synth/reader.h"

namespace espalier::synth {
namespace {

constexpr Difficulty kPlain{}, kHard{true, true};
constexpr size_t kPatches = kCrowdGrid * kCrowdGrid;

struct Crowd {
  std::vector<Member> members;
  Scene scene;
};

Crowd crowd(uint64_t index, const Difficulty& difficulty = kHard) {
  Draws draws(scene_seed(Split::kTest, 41, index));
  Crowd made;
  made.members = draw_members(draws, kFewestInCrowd + static_cast<int>(index % 9));
  made.scene = crowded_scene(draws.next(), difficulty, made.members);
  return made;
}

TEST(Crowd, MembersHaveSlotsOfTheirOwnAndMarksOfAnotherColour) {
  for (uint64_t i = 0; i < 300; ++i) {
    const std::vector<Member> members = crowd(i).members;
    std::set<int> slots;
    for (const Member& m : members) {
      EXPECT_NE(m.mark, m.colour);
      EXPECT_GE(m.slot, 0);
      EXPECT_LT(m.slot, 16);
      slots.insert(m.slot);
    }
    EXPECT_EQ(slots.size(), members.size());
    EXPECT_GE(members.size(), 8u);
    EXPECT_LE(members.size(), 16u);
  }
}

TEST(Crowd, SeveralShareAShapeOrAColour) {
  for (uint64_t i = 0; i < 300; ++i) {
    std::map<Shape, int> shapes;
    std::map<Colour, int> colours;
    for (const Member& m : crowd(i).members) ++shapes[m.shape], ++colours[m.colour];
    // By counting: 8 things and more of 6 kinds.
    EXPECT_TRUE(std::ranges::any_of(shapes, [](const auto& s) { return s.second > 1; }));
    EXPECT_TRUE(std::ranges::any_of(colours, [](const auto& c) { return c.second > 1; }));
  }
}

TEST(Crowd, ThePictureIsTheSameForTheSameSeed) {
  const Crowd first = crowd(3), second = crowd(3), other = crowd(12);
  EXPECT_EQ(draw(first.scene, kCrowdSide).image.rgb, draw(second.scene, kCrowdSide).image.rgb);
  EXPECT_NE(draw(first.scene, kCrowdSide).image.rgb, draw(other.scene, kCrowdSide).image.rgb);
}

// Every object lies in the slot that its member names, whole and apart from its neighbours.
TEST(Crowd, ObjectsLieInTheirSlots) {
  constexpr int kSlot = kExtent / 4;
  for (uint64_t i = 0; i < 200; ++i) {
    const Crowd made = crowd(i);
    ASSERT_EQ(made.scene.objects.size(), made.members.size());
    ASSERT_EQ(made.scene.marks.size(), made.members.size());
    for (size_t o = 0; o < made.members.size(); ++o) {
      const Member& m = made.members[o];
      const Object& object = made.scene.objects[o];
      EXPECT_EQ(object.shape, m.shape);
      EXPECT_EQ(object.colour, m.colour);
      EXPECT_EQ(made.scene.marks[o].colour, m.mark);
      EXPECT_EQ(object.place(), m.place());
      const int x0 = m.slot % 4 * kSlot, y0 = m.slot / 4 * kSlot;
      EXPECT_GT(object.centre.x - object.radius, x0);
      EXPECT_LT(object.centre.x + object.radius, x0 + kSlot);
      EXPECT_GT(object.centre.y - object.radius, y0);
      EXPECT_LT(object.centre.y + object.radius, y0 + kSlot);
    }
  }
}

// Each pixel again, from the outlines' formulas in floating point: what covers it, where no outline runs near it; and
// the colours from the pixels alone.
void expect_drawn_as_described(const Crowd& made, int side, bool is_large) {
  const Drawing drawing = draw(made.scene, side);
  std::map<std::pair<int, int>, std::array<int, 2>> right_of;  // thing -> {right, all} inner pixels
  int checked = 0;
  for (int y = 0; y < side; ++y)
    for (int x = 0; x < side; ++x) {
      const std::optional<Cover> expected = test::thing_at(made.scene, side, x, y);
      if (!expected) continue;
      ++checked;
      const Cover got = drawing.covers[static_cast<size_t>(y * side + x)];
      const Rgb colour = pixel_of(drawing.image, x, y);
      if (expected->by == Cover::By::kBackground) {
        EXPECT_NE(got.by, Cover::By::kObject) << x << ", " << y;
        EXPECT_NE(got.by, Cover::By::kMark) << x << ", " << y;
        EXPECT_LT(saturation_of(colour), 75);  // dull
        continue;
      }
      EXPECT_EQ(got, *expected) << x << ", " << y;
      const Member& m = made.members[expected->object];
      auto& [right, all] = right_of[{static_cast<int>(expected->by), expected->object}];
      right += has_hue_of(colour, expected->by == Cover::By::kMark ? m.mark : m.colour);
      ++all;
    }
  EXPECT_GT(checked, side * side / 2);
  for (const auto& [thing, counts] : right_of) EXPECT_GE(counts[0], counts[1] * 9 / 10);
  if (is_large) {
    EXPECT_EQ(right_of.size(), 2 * made.members.size());  // every object and every mark is there
  }
}

TEST(Crowd, PixelsShowWhatTheSceneSays) {
  for (uint64_t i = 0; i < 30; ++i) {
    const Crowd made = crowd(i, i % 2 ? kHard : kPlain);
    expect_drawn_as_described(made, kCrowdSide, false);  // a star's points are thinner than two pixels
    expect_drawn_as_described(made, 3 * kCrowdSide, true);
  }
}

// What a choice that does not know the question is up against: objects alone are several times a ninth of the patches,
// and what is asked about is less than a ninth.
TEST(Crowd, ObjectsFillFarMoreThanANinthAndEachLess) {
  for (uint64_t i = 0; i < 200; ++i) {
    const Crowd made = crowd(i);
    const auto covers = patch_covers(draw(made.scene, kCrowdSide), kCrowdGrid, kCrowdGrid);
    size_t of_objects = 0;
    for (size_t o = 0; o < made.members.size(); ++o) {
      const auto number = static_cast<uint8_t>(o);
      const size_t object = patches_showing(covers, {Cover::By::kObject, number}).size();
      const size_t mark = patches_showing(covers, {Cover::By::kMark, number}).size();
      EXPECT_GE(object, 2u);
      EXPECT_LT(9 * object, kPatches);
      EXPECT_GE(mark, 1u);
      EXPECT_LE(mark, 4u);
      of_objects += object;
    }
    EXPECT_GT(4 * of_objects, kPatches);  // more than a quarter
  }
}

// Deviation of brightness within patches: the ground's is at least as high as that of the objects' patches.
TEST(Crowd, TheGroundIsAsBusyAsTheObjects) {
  double ground = 0, objects = 0, of_ground = 0, of_objects = 0;
  for (uint64_t i = 0; i < 60; ++i) {
    const Crowd made = crowd(i);
    const Drawing drawing = draw(made.scene, kCrowdSide);
    const auto covers = patch_covers(drawing, kCrowdGrid, kCrowdGrid);
    for (size_t p = 0; p < kPatches; ++p) {
      double sum = 0, squares = 0;
      for (int k = 0; k < 49; ++k) {
        const Rgb c = pixel_of(drawing.image, static_cast<int>(p) % kCrowdGrid * 7 + k % 7,
                               static_cast<int>(p) / kCrowdGrid * 7 + k / 7);
        const double grey = (c.r + c.g + c.b) / 3.0;
        sum += grey, squares += grey * grey;
      }
      const double deviation = std::sqrt(std::max(0.0, squares / 49 - sum / 49 * (sum / 49)));
      const bool is_thing = covers[p].by == Cover::By::kObject || covers[p].by == Cover::By::kMark;
      (is_thing ? objects : ground) += deviation;
      (is_thing ? of_objects : of_ground) += 1;
    }
  }
  EXPECT_GE(ground / of_ground, objects / of_objects);
}

TEST(Crowd, DifficultyAddsWhatItSays) {
  for (uint64_t i = 0; i < 50; ++i) {
    const Crowd plain = crowd(i, kPlain), hard = crowd(i);
    EXPECT_TRUE(plain.scene.clutter.empty());
    EXPECT_TRUE(plain.scene.bars.empty());
    EXPECT_GE(hard.scene.clutter.size(), 90u);
    EXPECT_EQ(hard.scene.bars.size(), hard.members.size() < 16 ? 1u : 0u);
    for (const Panel& bar : hard.scene.bars)
      for (const Object& o : hard.scene.objects) {
        const bool is_apart = bar.corner.x > o.centre.x + o.radius ||
                              bar.corner.x + bar.width < o.centre.x - o.radius ||
                              bar.corner.y > o.centre.y + o.radius || bar.corner.y + bar.height < o.centre.y - o.radius;
        EXPECT_TRUE(is_apart);
      }
  }
}

// ---- questions ----

constexpr std::array<CrowdAsk, 5> kAsks = {CrowdAsk::kColourOf, CrowdAsk::kShapeOf, CrowdAsk::kPlaceOf,
                                           CrowdAsk::kSpotOf, CrowdAsk::kWithSpot};

TEST(Crowd, EveryQuestionMeansExactlyOneObject) {
  std::map<CrowdAsk, int> asked;
  for (uint64_t i = 0; i < 300; ++i) {
    const Crowd made = crowd(i);
    for (const CrowdAsk ask : kAsks)
      for (const CrowdQuestion& question : questions_about(made.members, ask)) {
        const std::string text = text_of(made.members, question);
        EXPECT_EQ(test::who_is_meant(made.scene, text), std::vector<size_t>{static_cast<size_t>(question.object)})
            << text;
        ++asked[ask];
      }
  }
  for (const CrowdAsk ask : kAsks) EXPECT_GT(asked[ask], 100);
}

// Of the kinds that name one thing: every text with one answer is there.
TEST(Crowd, NoQuestionIsForgotten) {
  for (uint64_t i = 0; i < 100; ++i) {
    const Crowd made = crowd(i);
    std::map<CrowdAsk, std::set<std::string>> expected;
    const auto add = [&](CrowdAsk ask, const std::string& text) {
      if (test::who_is_meant(made.scene, text).size() == 1) expected[ask].insert(text);
    };
    for (const std::string_view colour : kColourNames) {
      add(CrowdAsk::kShapeOf, ask_shape_of(colour));
      add(CrowdAsk::kWithSpot, ask_what_has_spot(colour));
      for (const std::string_view shape : kShapeNames) {
        const std::string kind = std::string(colour) + " " + std::string(shape);
        add(CrowdAsk::kColourOf, ask_colour_of(shape));
        add(CrowdAsk::kPlaceOf, ask_place_of(kind));
        add(CrowdAsk::kSpotOf, ask_spot_on(kind));
      }
    }
    for (const CrowdAsk ask : kAsks) {
      std::set<std::string> got;
      for (const CrowdQuestion& question : questions_about(made.members, ask))
        got.insert(text_of(made.members, question));
      EXPECT_EQ(got, expected[ask]);
    }
  }
}

}  // namespace
}  // namespace espalier::synth
