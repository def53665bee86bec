// SPDX-License-Identifier: Apache-2.0
#include "synth/screens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <vector>

#include "synth/crowd.h"
#include "tests/synth/outlines.h"
#include "tests/synth/pixels.h"

namespace espalier::synth {
namespace {

constexpr Difficulty kPlain{}, kHard{true, true};
constexpr std::array<ScreenAsk, 5> kAsks = {ScreenAsk::kPressed, ScreenAsk::kNow, ScreenAsk::kChanged,
                                            ScreenAsk::kUnchanged, ScreenAsk::kBefore};

struct Shown {
  ScreenSequence sequence;
  std::vector<Scene> scenes;
};

Shown shown(uint64_t index, ScreenAsk ask, const Difficulty& difficulty = kHard) {
  Draws draws(scene_seed(Split::kTest, 42, index));
  Shown made{draw_screens(draws, ask, static_cast<int>(index % 6)), {}};
  for (int s = 0; s < kNumScreens; ++s) made.scenes.push_back(screen_scene(draws.next(), difficulty, made.sequence, s));
  return made;
}

TEST(Screens, EveryLabelIsOnOneButton) {
  for (uint64_t i = 0; i < 100; ++i) {
    const ScreenSequence sequence = shown(i, kAsks[i % 5]).sequence;
    EXPECT_EQ(std::set(sequence.labels.begin(), sequence.labels.end()).size(), 6u);
    EXPECT_EQ(sequence.screens.size(), 4u);
    for (int b = 0; b < kNumButtons; ++b) EXPECT_EQ(sequence.button_of(sequence.labels[static_cast<size_t>(b)]), b);
  }
}

// Buttons lie in windows, apart from each other; labels and pointer lie on their buttons.
TEST(Screens, ThingsLieInEachOther) {
  const auto is_within = [](const Panel& inner, const Panel& outer) {
    return inner.corner.x >= outer.corner.x && inner.corner.y >= outer.corner.y &&
           inner.corner.x + inner.width <= outer.corner.x + outer.width &&
           inner.corner.y + inner.height <= outer.corner.y + outer.height;
  };
  const auto square_of = [](const Figure& f) {
    return Panel{{f.centre.x - f.radius, f.centre.y - f.radius}, 2 * f.radius, 2 * f.radius, {}};
  };
  const auto overlap = [](const Panel& a, const Panel& b) {
    return a.corner.x < b.corner.x + b.width && b.corner.x < a.corner.x + a.width &&
           a.corner.y < b.corner.y + b.height && b.corner.y < a.corner.y + a.height;
  };
  const Panel picture{{0, 0}, kExtent, kExtent, {}};
  for (uint64_t i = 0; i < 200; ++i) {
    const Shown made = shown(i, kAsks[i % 5]);
    for (size_t s = 0; s < made.scenes.size(); ++s) {
      const Scene& scene = made.scenes[s];
      const Screen& screen = *scene.screen;
      ASSERT_EQ(screen.windows.size(), 4u);  // frame and body of two
      ASSERT_EQ(screen.faces.size(), 6u);
      EXPECT_FALSE(overlap(screen.windows[0], screen.windows[2]));
      for (size_t w = 0; w < 4; w += 2) {
        EXPECT_TRUE(is_within(screen.windows[w], picture));
        EXPECT_TRUE(is_within(screen.windows[w + 1], screen.windows[w]));
      }
      for (size_t b = 0; b < 6; ++b) {
        EXPECT_TRUE(is_within(screen.faces[b], screen.windows[b < 3 ? 1 : 3]));
        EXPECT_TRUE(is_within(square_of(scene.objects[b]), screen.faces[b]));
        for (size_t other = 0; other < b; ++other) EXPECT_FALSE(overlap(screen.faces[b], screen.faces[other]));
        for (const Panel& bar : scene.bars) EXPECT_FALSE(overlap(screen.faces[b], bar));
        EXPECT_FALSE(overlap(square_of(scene.objects[b]), square_of(screen.pointer)));
      }
      EXPECT_TRUE(
          is_within(square_of(screen.pointer), screen.faces[static_cast<size_t>(made.sequence.screens[s].pressed)]));
    }
  }
}

// Each pixel again by formulas, and the colours of the faces from the pixels alone.
TEST(Screens, PixelsShowWhatTheSequenceSays) {
  for (uint64_t i = 0; i < 20; ++i) {
    const Shown made = shown(i, kAsks[i % 5], i % 2 ? kHard : kPlain);
    for (size_t s = 0; s < made.scenes.size(); ++s) {
      const Scene& scene = made.scenes[s];
      const Drawing drawing = draw(scene, kCrowdSide);
      std::map<int, std::array<int, 3>> seen;  // button -> pixels of its colour, dark pixels of its label, all
      for (int y = 0; y < kCrowdSide; ++y)
        for (int x = 0; x < kCrowdSide; ++x) {
          const std::optional<Cover> expected = test::thing_at(scene, kCrowdSide, x, y);
          if (!expected) continue;
          const Cover got = drawing.covers[static_cast<size_t>(y * kCrowdSide + x)];
          const Rgb c = pixel_of(drawing.image, x, y);
          if (expected->by == Cover::By::kBackground) {
            EXPECT_NE(got.by, Cover::By::kObject);
            EXPECT_NE(got.by, Cover::By::kPointer);
            EXPECT_LT(saturation_of(c), 75);
            continue;
          }
          EXPECT_EQ(got, *expected);
          if (expected->by == Cover::By::kPointer) {
            EXPECT_GT(std::min({c.r, c.g, c.b}), 220);  // white
            continue;
          }
          auto& [coloured, dark, all] = seen[expected->object];
          coloured += has_hue_of(c, made.sequence.screens[s].colours[expected->object]) && saturation_of(c) > 75;
          dark += std::max({c.r, c.g, c.b}) < 60;
          ++all;
        }
      EXPECT_EQ(seen.size(), 6u);
      for (const auto& [button, counts] : seen) {
        EXPECT_GT(counts[1], 3);                                 // a label
        EXPECT_GT(10 * (counts[0] + counts[1]), 8 * counts[2]);  // the rest is the face; labels have soft edges
      }
    }
  }
}

// From the pictures alone: on which faces two screens differ by more than their noise, at corners that neither label
// nor pointer reaches.
std::set<int> changed_faces(const Scene& before, const Scene& after) {
  const Image first = draw(before, kCrowdSide).image, second = draw(after, kCrowdSide).image;
  std::set<int> changed;
  for (size_t b = 0; b < after.screen->faces.size(); ++b) {
    const Panel& face = after.screen->faces[b];
    const int x = (face.corner.x + kUnit) * kCrowdSide / kExtent, y = (face.corner.y + kUnit) * kCrowdSide / kExtent;
    const Rgb p = pixel_of(first, x, y), q = pixel_of(second, x, y);
    const int most = std::max({std::abs(p.r - q.r), std::abs(p.g - q.g), std::abs(p.b - q.b)});
    if (most > 2 * after.background.noise) changed.insert(static_cast<int>(b));
  }
  return changed;
}

TEST(Screens, WhatChangesIsWhatIsAsked) {
  for (uint64_t i = 0; i < 60; ++i)
    for (const ScreenAsk ask : {ScreenAsk::kChanged, ScreenAsk::kUnchanged}) {
      const Shown made = shown(i, ask);
      std::set<int> singled_out;
      for (size_t s = 1; s < 4; ++s) {
        std::set<int> one = changed_faces(made.scenes[s - 1], made.scenes[s]);
        if (ask == ScreenAsk::kUnchanged) {
          std::set<int> kept;
          for (int b = 0; b < 6; ++b)
            if (!one.contains(b)) kept.insert(b);
          one = kept;
        }
        ASSERT_EQ(one.size(), 1u) << i << " screen " << s;
        EXPECT_TRUE(singled_out.insert(*one.begin()).second);  // every time another
        if (s == 3) {
          EXPECT_EQ(name_of(made.sequence.labels[static_cast<size_t>(*one.begin())]), answer_to(made.sequence, ask));
        }
      }
    }
}

// Each button's patches are less than a ninth, all of them together far more.
TEST(Screens, ButtonsFillFarMoreThanANinthAndEachLess) {
  for (uint64_t i = 0; i < 100; ++i) {
    const Shown made = shown(i, kAsks[i % 5]);
    for (const Scene& scene : made.scenes) {
      const auto covers = patch_covers(draw(scene, kCrowdSide), kCrowdGrid, kCrowdGrid);
      size_t all = 0;
      for (uint8_t b = 0; b < 6; ++b) {
        const size_t patches = patches_showing(covers, {Cover::By::kObject, b}).size();
        EXPECT_GE(patches, 4u);
        EXPECT_LE(patches, 12u);
        all += patches;
      }
      EXPECT_GT(4 * all, covers.size());
      EXPECT_GE(patches_showing(covers, {Cover::By::kPointer}).size(), 1u);
    }
  }
}

// What did not change is one of six: it is known from all of them, on both screens; what changed shows that by itself.
TEST(Screens, WhatIsNeededTellsTheAnswer) {
  for (const ScreenAsk ask : {ScreenAsk::kChanged, ScreenAsk::kUnchanged})
    for (uint64_t i = 0; i < 60; ++i) {
      const ScreenSequence sequence = shown(i, ask).sequence;
      const std::vector<Cover> needed = needed_on(sequence, ask, kNumScreens - 1);
      EXPECT_EQ(needed_on(sequence, ask, kNumScreens - 2), needed);
      EXPECT_TRUE(needed_on(sequence, ask, 0).empty());
      const bool wants_change = ask == ScreenAsk::kChanged;
      EXPECT_EQ(needed.size(), wants_change ? 1u : 6u);
      std::vector<int> found;
      std::set<int> buttons;
      for (const Cover cover : needed) {
        ASSERT_EQ(cover.by, Cover::By::kObject);
        buttons.insert(cover.object);
        const bool changed = sequence.screens[kNumScreens - 1].colours[cover.object] !=
                             sequence.screens[kNumScreens - 2].colours[cover.object];
        if (changed == wants_change) found.push_back(cover.object);
      }
      EXPECT_EQ(buttons.size(), needed.size());
      EXPECT_EQ(found, std::vector<int>{sequence.asked});
    }
}

TEST(Screens, ASequenceIsTheSameForTheSameSeed) {
  for (uint64_t i = 0; i < 5; ++i) {
    const Shown first = shown(i, kAsks[i % 5]), second = shown(i, kAsks[i % 5]);
    for (size_t s = 0; s < 4; ++s)
      EXPECT_EQ(draw(first.scenes[s], kCrowdSide).image.rgb, draw(second.scenes[s], kCrowdSide).image.rgb);
    // Screens of one sequence share their desktop: outside the windows they differ by noise alone.
    const Drawing a = draw(first.scenes[0], kCrowdSide), b = draw(first.scenes[3], kCrowdSide);
    EXPECT_NE(a.image.rgb, b.image.rgb);
    for (size_t p = 0; p < a.covers.size(); ++p) {
      if (a.covers[p].by != Cover::By::kBackground && a.covers[p].by != Cover::By::kClutter) continue;
      for (size_t c = 3 * p; c < 3 * p + 3; ++c)
        ASSERT_LE(std::abs(a.image.rgb[c] - b.image.rgb[c]), 2 * first.scenes[0].background.noise);
    }
  }
}

}  // namespace
}  // namespace espalier::synth
