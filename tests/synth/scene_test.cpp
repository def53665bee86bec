// SPDX-License-Identifier: Apache-2.0
#include "synth/scene.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <set>
#include <vector>

#include "tests/synth/pixels.h"

namespace espalier::synth {
namespace {

constexpr Difficulty kPlain{}, kHard{true, true};

TEST(Scene, IsTheSameForTheSameSeed) {
  for (const Difficulty& difficulty : {kPlain, kHard})
    for (uint64_t i = 0; i < 20; ++i) {
      const uint64_t seed = scene_seed(Split::kTrain, 3, i);
      EXPECT_EQ(draw(solo_scene(seed, difficulty)).image.rgb, draw(solo_scene(seed, difficulty)).image.rgb);
      EXPECT_NE(draw(solo_scene(seed, difficulty)).image.rgb, draw(solo_scene(seed + 1, difficulty)).image.rgb);
    }
}

TEST(Scene, SplitsShareNoSeed) {
  std::set<uint64_t> seeds;
  for (const Split split : {Split::kTrain, Split::kTest})
    for (uint64_t stream = 0; stream < 50; ++stream)
      for (uint64_t i = 0; i < 50; ++i) {
        const uint64_t seed = scene_seed(split, stream, i);
        EXPECT_EQ(split_of(seed), split);
        EXPECT_TRUE(seeds.insert(seed).second);
      }
}

// The colours that are wanted are the colours that are drawn, told from the pixels alone.
TEST(Scene, ObjectsAndSpotsHaveTheirColour) {
  for (const Difficulty& difficulty : {kPlain, kHard})
    for (uint64_t i = 0; i < 300; ++i) {
      const Scene scene = i % 2 ? group_scene(scene_seed(Split::kTest, 1, i), difficulty, static_cast<int>(1 + i % 4))
                                : solo_scene(scene_seed(Split::kTest, 1, i), difficulty);
      const Drawing drawing = draw(scene);
      std::map<int, std::array<int, 2>> right_of;  // thing -> {right, all} inner pixels
      for (int y = 1; y + 1 < kDefaultSide; ++y)
        for (int x = 1; x + 1 < kDefaultSide; ++x) {
          const auto cover_at = [&](int dx, int dy) {
            return drawing.covers[static_cast<size_t>((y + dy) * kDefaultSide + x + dx)];
          };
          const Cover cover = cover_at(0, 0);
          const bool is_inner = cover_at(1, 0) == cover && cover_at(-1, 0) == cover && cover_at(0, 1) == cover &&
                                cover_at(0, -1) == cover;
          const Rgb c = pixel_of(drawing.image, x, y);
          if (!is_inner) continue;
          if (cover.by == Cover::By::kObject || cover.by == Cover::By::kSpot) {
            const bool is_spot = cover.by == Cover::By::kSpot;
            auto& [right, all] = right_of[is_spot ? -1 : cover.object];
            right += has_hue_of(c, is_spot ? scene.spot->colour : scene.objects[cover.object].colour);
            ++all;
          } else {
            EXPECT_LT(saturation_of(c), 75);  // dull
          }
        }
      EXPECT_EQ(right_of.size(), scene.objects.size() + (scene.spot ? 1 : 0));
      for (const auto& [thing, counts] : right_of)
        EXPECT_GE(counts[0], counts[1] * 9 / 10) << "seed " << i << " thing " << thing;
    }
}

// Areas of the shapes by their formulas, in units of the squared radius; drawn large, so that edges hardly count.
TEST(Scene, ShapesHaveTheirArea) {
  const std::map<Shape, double> areas = {{Shape::kCircle, 3.1416},
                                         {Shape::kSquare, 1.72 * 1.72},
                                         {Shape::kTriangle, 0.5 * 1.9 * 1.82},
                                         {Shape::kStar, 5 * 0.4 * 0.5878},  // 5 r sin 36
                                         {Shape::kCross, 2 * 0.64 * 1.92 - 0.64 * 0.64},
                                         {Shape::kRing, 3.1416 * (1 - 0.56 * 0.56)}};
  for (const auto& [shape, area] : areas) {
    double covered = 0, expected = 0;
    for (uint64_t i = 0; i < 10; ++i) {
      const Scene scene =
          solo_scene(scene_seed(Split::kTrain, 9, i), kPlain, {.shape = shape, .colour = {}, .place = {}});
      constexpr int kScale = 10;
      const double radius = static_cast<double>(kScale * scene.objects[0].radius) / kUnit;
      expected += area * radius * radius;
      covered += static_cast<double>(
          std::ranges::count(draw(scene, kScale * kDefaultSide).covers, Cover{Cover::By::kObject, 0}));
    }
    EXPECT_NEAR(covered / expected, 1.0, 0.02) << name_of(shape);
  }
}

TEST(Scene, ThingsStayInsideAndApart) {
  for (uint64_t i = 0; i < 500; ++i) {
    const Scene scene = i % 2 ? group_scene(scene_seed(Split::kTrain, 2, i), kHard, static_cast<int>(1 + i % 4))
                              : solo_scene(scene_seed(Split::kTrain, 2, i), kHard);
    std::vector<Figure> figures(scene.objects.begin(), scene.objects.end());
    if (scene.distractor) figures.push_back(*scene.distractor);
    if (scene.spot) {
      constexpr int kHalf = Spot::kSide / 2;
      figures.push_back({{}, {scene.spot->corner.x + kHalf, scene.spot->corner.y + kHalf}, kHalf, {}});
    }
    for (size_t a = 0; a < figures.size(); ++a) {
      const Figure& f = figures[a];
      EXPECT_GE(std::min(f.centre.x, f.centre.y) - f.radius, 0);
      EXPECT_LE(std::max(f.centre.x, f.centre.y) + f.radius, kExtent);
      for (size_t b = 0; b < a; ++b) {
        const Figure& g = figures[b];
        EXPECT_GE(std::max(std::abs(f.centre.x - g.centre.x), std::abs(f.centre.y - g.centre.y)), f.radius + g.radius);
      }
    }
  }
}

TEST(Scene, GroupsHaveOneObjectAQuarterAndNothingTwice) {
  for (uint64_t i = 0; i < 400; ++i) {
    const int count = static_cast<int>(1 + i % 4);
    const Scene scene = group_scene(scene_seed(Split::kTrain, 4, i), kHard, count);
    std::set<Shape> shapes;
    std::set<Colour> colours;
    std::set<Place> places;
    for (const Object& o : scene.objects) shapes.insert(o.shape), colours.insert(o.colour), places.insert(o.place());
    EXPECT_EQ(shapes.size(), static_cast<size_t>(count));
    EXPECT_EQ(colours.size(), static_cast<size_t>(count));
    EXPECT_EQ(places.size(), static_cast<size_t>(count));
    EXPECT_FALSE(scene.spot);
    if (scene.distractor) {
      EXPECT_FALSE(shapes.contains(scene.distractor->shape));
    }
  }
}

TEST(Scene, WantedThingsAreThere) {
  const std::vector<WantedObject> wanted = {{Shape::kStar, Colour::kBlue, Place::kBottomRight},
                                            {Shape::kRing, {}, Place::kTopLeft}};
  for (uint64_t i = 0; i < 100; ++i) {
    const Scene scene = group_scene(scene_seed(Split::kTrain, 5, i), kHard, 3, wanted);
    ASSERT_EQ(scene.objects.size(), 3u);
    EXPECT_EQ(scene.objects[0].shape, Shape::kStar);
    EXPECT_EQ(scene.objects[0].colour, Colour::kBlue);
    EXPECT_EQ(scene.objects[0].place(), Place::kBottomRight);
    EXPECT_EQ(scene.objects[1].shape, Shape::kRing);
    EXPECT_EQ(scene.objects[1].place(), Place::kTopLeft);
    const Scene solo = solo_scene(scene_seed(Split::kTrain, 5, i), kHard, wanted[0], Colour::kRed);
    EXPECT_EQ(solo.objects[0].colour, Colour::kBlue);
    EXPECT_EQ(solo.spot->colour, Colour::kRed);
  }
}

TEST(Scene, DifficultyAddsWhatItSays) {
  int distractors = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    const uint64_t seed = scene_seed(Split::kTrain, 6, i);
    EXPECT_TRUE(solo_scene(seed, kPlain).clutter.empty());
    EXPECT_FALSE(solo_scene(seed, kPlain).distractor);
    const Scene hard = solo_scene(seed, kHard);
    EXPECT_GE(hard.clutter.size(), 4u);
    EXPECT_LE(hard.clutter.size(), 8u);
    distractors += hard.distractor.has_value();
  }
  EXPECT_EQ(distractors, 200);
}

// Each patch again from the pixels: no thing that covers a tenth of it is forgotten, none is invented.
TEST(Scene, PatchesBelongToWhatCoversThem) {
  for (uint64_t i = 0; i < 100; ++i) {
    const Scene scene = i % 2 ? group_scene(scene_seed(Split::kTrain, 7, i), kHard, 4)
                              : solo_scene(scene_seed(Split::kTrain, 7, i), kHard);
    const Drawing drawing = draw(scene);
    const std::vector<Cover> patches = patch_covers(drawing, 8, 8);
    ASSERT_EQ(patches.size(), 64u);
    for (int patch = 0; patch < 64; ++patch) {
      std::map<int, int> pixels;  // cover as a number -> pixels
      for (int y = 0; y < 7; ++y)
        for (int x = 0; x < 7; ++x) {
          const Cover c = drawing.covers[static_cast<size_t>((patch / 8 * 7 + y) * kDefaultSide + patch % 8 * 7 + x)];
          ++pixels[10 * static_cast<int>(c.by) + c.object];
        }
      const Cover got = patches[static_cast<size_t>(patch)];
      const int mine = pixels[10 * static_cast<int>(got.by) + got.object];
      const bool is_figure = got.by == Cover::By::kObject || got.by == Cover::By::kSpot;
      for (const auto& [other, n] : pixels)
        if (other / 10 >= static_cast<int>(Cover::By::kObject) && 10 * n >= 49) {
          EXPECT_TRUE(is_figure);
          EXPECT_GE(mine, n);
        }
      if (got.by != Cover::By::kBackground) {
        EXPECT_GE(10 * mine, 49);
      }
    }
  }
}

TEST(Scene, DrawsAtOtherSides) {
  const Scene scene = solo_scene(scene_seed(Split::kTrain, 8, 1), kHard);
  const Drawing drawing = draw(scene, 168);
  EXPECT_EQ(drawing.image.width, 168);
  EXPECT_EQ(drawing.image.rgb.size(), 3u * 168 * 168);
  // Three times the side: the same patches within the rule's rounding.
  const std::vector<Cover> small = patch_covers(draw(scene), 8, 8), large = patch_covers(drawing, 8, 8);
  int different = 0;
  for (size_t i = 0; i < small.size(); ++i) different += !(small[i] == large[i]);
  EXPECT_LE(different, 6);
}

}  // namespace
}  // namespace espalier::synth
