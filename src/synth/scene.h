// SPDX-License-Identifier: Apache-2.0
// Small pictures with a known content: coloured objects and a tiny spot on a textured background, drawn from a seed
// with integer arithmetic alone, so that the same seed gives the same bytes on every machine. A drawing also says what
// covers each pixel. Not here: questions about scenes (items.h).
//
// Lengths in a Scene are kUnit-ths of a pixel of a 56 x 56 picture, whatever the side it is drawn at.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "espalier/image.h"
#include "synth/wording.h"

namespace espalier::synth {

inline constexpr int kDefaultSide = 56, kUnit = 16, kExtent = kDefaultSide * kUnit;

// Training and test scenes come from different seeds by construction: the top bit of a seed is its split.
enum class Split : uint8_t { kTrain, kTest };
uint64_t scene_seed(Split split, uint64_t stream, uint64_t index);
constexpr Split split_of(uint64_t seed) {
  return seed >> 63 ? Split::kTest : Split::kTrain;
}

// What makes a scene harder than the plain one.
struct Difficulty {
  bool clutter = false;     // 4-8 dull strokes behind everything
  bool distractor = false;  // a grey object of a shape that no coloured object has; questions are about coloured ones
};
inline constexpr std::array<std::string_view, 4> kDifficultyNames = {"plain", "clutter", "distractor", "hard"};
Difficulty difficulty_named(std::string_view name);  // "hard" is both; throws Error for another name

struct Point {
  int x = 0, y = 0;
};
struct Rgb {
  int r = 0, g = 0, b = 0;
};

struct Figure {
  Shape shape{};
  Point centre;
  int radius = 0;
  Rgb paint;
};
struct Object : Figure {
  Colour colour{};
  Place place() const;  // the quarter of its centre
};
struct Spot {  // a square of kSide x kSide
  static constexpr int kSide = 4 * kUnit;
  Colour colour{};
  Point corner;
  Rgb paint;
};
struct Stroke {
  Point from, to;
  int half_width = 0;
  Rgb paint;
};
struct Background {
  Rgb base;
  int amplitude = 0;           // of one wave
  int step_x = 0, step_y = 0;  // its phase per pixel of 56, in 1/4096 of a period
  int phase = 0;
  int noise = 0;  // largest deviation of a channel of a pixel, everywhere
};

struct Scene {
  uint64_t seed = 0;  // of the pixel noise; everything else follows from it too
  Background background;
  std::vector<Stroke> clutter;
  std::optional<Figure> distractor;
  std::vector<Object> objects;
  std::optional<Spot> spot;
};

// What a caller fixes; the rest is drawn.
struct WantedObject {
  std::optional<Shape> shape;
  std::optional<Colour> colour;
  std::optional<Place> place;  // in group scenes
};

// One object anywhere and a spot away from it.
Scene solo_scene(uint64_t seed, const Difficulty& difficulty, const WantedObject& wanted = {},
                 std::optional<Colour> spot = {});
// `count` objects (1-4), one a quarter, no shape and no colour twice, no spot. The wanted ones come first in
// Scene::objects.
Scene group_scene(uint64_t seed, const Difficulty& difficulty, int count, std::span<const WantedObject> wanted = {});

// ---- drawing ----

struct Cover {
  enum class By : uint8_t { kBackground, kClutter, kDistractor, kObject, kSpot };
  By by = By::kBackground;
  uint8_t object = 0;  // index into Scene::objects
  bool operator==(const Cover&) const = default;
};

struct Drawing {
  Image image;                // side x side
  std::vector<Cover> covers;  // one a pixel: the topmost thing that covers at least half of it
};

Drawing draw(const Scene& scene, int side = kDefaultSide);

// What each cell of a rows x cols grid over the picture shows, row by row: the object or spot that covers most of it,
// if that is at least a tenth of its pixels; else by the same rule the distractor, else
// clutter, else background.
std::vector<Cover> patch_covers(const Drawing& drawing, int rows, int cols);

}  // namespace espalier::synth
