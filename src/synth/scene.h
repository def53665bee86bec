// SPDX-License-Identifier: Apache-2.0
// Small pictures with a known content: coloured objects and a tiny spot on a textured background, drawn from a seed
// with integer arithmetic alone, so that the same seed gives the same bytes on every machine. A drawing also says what
// covers each pixel. Not here: scenes with many objects (crowd.h), screens (screens.h), questions (items.h).
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
struct Panel {  // a rectangle
  Point corner;
  int width = 0, height = 0;
  Rgb paint;
};
struct Mark : Panel {  // a square in the middle of an object
  static constexpr int kSide = 7 * kUnit / 2;
  Colour colour{};
};
// Windows over each other and a pointer. The scene's objects are then buttons: a face in the object's colour, and on it
// the object's shape as a label.
struct Screen {
  std::vector<Panel> windows;  // as they are painted: frames, title bars and bodies
  std::vector<Panel> faces;    // of the scene's objects
  Figure pointer;
  uint8_t pressed = 0;  // the object under the pointer
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
  std::vector<Panel> bars = {};  // grey, where other scenes have their distractor
  std::vector<Mark> marks = {};  // none, or one on each object, in their order
  std::optional<Screen> screen = {};
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
  // What only crowded scenes and screens have stands behind the rest.
  enum class By : uint8_t { kBackground, kClutter, kDistractor, kObject, kSpot, kMark, kPointer, kWindow };
  By by = By::kBackground;
  uint8_t object = 0;  // index into Scene::objects: of the object, or of the one that a mark sits on
  bool operator==(const Cover&) const = default;
};

struct Drawing {
  Image image;                // side x side
  std::vector<Cover> covers;  // one a pixel: the topmost thing that covers at least half of it
};

Drawing draw(const Scene& scene, int side = kDefaultSide);

// What each cell of a rows x cols grid over the picture shows, row by row: the mark or pointer that covers most of it,
// if that is at least a tenth of its pixels; else by the same rule the object or spot, else the distractor, else
// clutter, else a window, else background.
std::vector<Cover> patch_covers(const Drawing& drawing, int rows, int cols);

// Whether such a cell shows a part of `thing`: a mark is also a part of its object.
constexpr bool shows(Cover cell, Cover thing) {
  return cell == thing ||
         (cell.by == Cover::By::kMark && thing.by == Cover::By::kObject && cell.object == thing.object);
}
std::vector<int> patches_showing(std::span<const Cover> covers, Cover thing);

}  // namespace espalier::synth
