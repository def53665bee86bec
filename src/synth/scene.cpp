// SPDX-License-Identifier: Apache-2.0
#include "synth/scene.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "synth/draws.h"
#include "synth/scene_parts.h"

namespace espalier::synth {

namespace {

constexpr int kMinRadius = 6 * kUnit, kMaxRadius = 19 * kUnit / 2;
constexpr int kGap = 2 * kUnit;  // between things that must not touch

constexpr std::array<Rgb, kNumColours> kPaints = {
    {{215, 45, 45}, {45, 165, 70}, {50, 90, 215}, {232, 212, 50}, {150, 60, 180}, {240, 135, 30}}};
constexpr StrokePlan kFewStrokes = {.fewest = 4, .most = 8, .faintest = 25, .strongest = 55};

// Whether squares around the centres, widened by kGap, stay apart.
bool are_apart(Point a, int radius_a, Point b, int radius_b) {
  const int reach = radius_a + radius_b + kGap;
  return std::abs(a.x - b.x) >= reach || std::abs(a.y - b.y) >= reach;
}

Point point_within(Draws& draws, int x0, int y0, int extent, int margin) {
  return {x0 + draws.between(margin, extent - margin), y0 + draws.between(margin, extent - margin)};
}

// Grey, far from the background's brightness, of a shape that no object has. Left out where there is no room.
std::optional<Figure> draw_distractor(Draws& draws, const Scene& scene) {
  std::vector<Shape> shapes;
  for (int s = 0; s < kNumShapes; ++s)
    if (std::ranges::none_of(scene.objects, [&](const Object& o) { return o.shape == static_cast<Shape>(s); }))
      shapes.push_back(static_cast<Shape>(s));
  Figure figure;
  figure.shape = shapes[static_cast<size_t>(draws.index(shapes.size()))];
  const int base = (scene.background.base.r + scene.background.base.g + scene.background.base.b) / 3;
  const int grey = base < 125 ? base + draws.between(60, 90) : base - draws.between(60, 75);
  figure.paint = jittered(draws, {grey, grey, grey}, 6);
  constexpr int kAttempts = 64;
  for (int i = 0; i < kAttempts; ++i) {
    figure.radius = draws.between(5 * kUnit, 8 * kUnit);
    figure.centre = point_within(draws, 0, 0, kExtent, figure.radius);
    const bool is_free = std::ranges::all_of(
        scene.objects, [&](const Object& o) { return are_apart(figure.centre, figure.radius, o.centre, o.radius); });
    constexpr int kHalf = Spot::kSide / 2;
    const bool is_off_spot =
        !scene.spot ||
        are_apart(figure.centre, figure.radius, {scene.spot->corner.x + kHalf, scene.spot->corner.y + kHalf}, kHalf);
    if (is_free && is_off_spot) return figure;
  }
  return std::nullopt;
}

// The object's square covers at most a ninth of the places, so this ends soon.
Spot draw_spot(Draws& draws, const Object& object, Colour colour) {
  Spot spot{colour, {}, paint_of(draws, colour)};
  constexpr int kHalf = Spot::kSide / 2;
  Point centre;
  do {
    centre = point_within(draws, 0, 0, kExtent, kHalf);
  } while (!are_apart(centre, kHalf, object.centre, object.radius));
  spot.corner = {centre.x - kHalf, centre.y - kHalf};
  return spot;
}

void add_difficulty(Draws& draws, const Difficulty& difficulty, Scene& scene) {
  if (difficulty.clutter) scene.clutter = draw_strokes(draws, scene.background, kFewStrokes);
  if (difficulty.distractor) scene.distractor = draw_distractor(draws, scene);
}

// `count` different values of an enumeration: the wanted ones at their places, the others drawn.
template <typename T>
std::vector<T> distinct(Draws& draws, int num_values, int count, std::span<const WantedObject> wanted,
                        std::optional<T> WantedObject::*field) {
  std::vector<T> others;
  const auto is_wanted = [&](T value) {
    return std::ranges::any_of(wanted, [&](const WantedObject& w) { return w.*field == value; });
  };
  for (int v = 0; v < num_values; ++v)
    if (!is_wanted(static_cast<T>(v))) others.push_back(static_cast<T>(v));
  draws.shuffle(others);
  std::vector<T> values;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    const bool is_fixed = i < wanted.size() && wanted[i].*field;
    values.push_back(is_fixed ? *(wanted[i].*field) : others.back());
    if (!is_fixed) others.pop_back();
  }
  return values;
}

// ---- what is inside a figure: dx, dy from its centre ----

// Corners in thousandths of the radius, y downwards.
constexpr std::array<Point, 3> kTriangle = {{{0, -1000}, {950, 820}, {-950, 820}}};
constexpr std::array<Point, 10> kStar = {{{0, -1000},
                                          {235, -324},
                                          {951, -309},
                                          {380, 124},
                                          {588, 809},
                                          {0, 400},
                                          {-588, 809},
                                          {-380, 124},
                                          {-951, -309},
                                          {-235, -324}}};

// Even-odd rule; dx, dy in thousandths of the radius.
bool is_inside_polygon(std::span<const Point> corners, int64_t dx, int64_t dy) {
  bool inside = false;
  for (size_t i = 0, j = corners.size() - 1; i < corners.size(); j = i++) {
    const Point a = corners[i], b = corners[j];
    if ((a.y > dy) == (b.y > dy)) continue;
    const int64_t side = (dx - a.x) * (b.y - a.y) - (dy - a.y) * (b.x - a.x);
    if ((side < 0) == (b.y > a.y)) inside = !inside;
  }
  return inside;
}

bool is_inside(const Figure& f, int x, int y) {
  const int64_t dx = x - f.centre.x, dy = y - f.centre.y, r = f.radius;
  const int64_t ax = std::abs(dx), ay = std::abs(dy), square = dx * dx + dy * dy;
  switch (f.shape) {
    case Shape::kCircle:
      return square <= r * r;
    case Shape::kSquare:
      return 100 * std::max(ax, ay) <= 86 * r;
    case Shape::kTriangle:
      return is_inside_polygon(kTriangle, dx * 1000 / r, dy * 1000 / r);
    case Shape::kStar:
      return is_inside_polygon(kStar, dx * 1000 / r, dy * 1000 / r);
    case Shape::kCross:
      return 100 * std::min(ax, ay) <= 32 * r && 100 * std::max(ax, ay) <= 96 * r;
    case Shape::kRing:
      return square <= r * r && 100 * 100 * square >= 56 * 56 * r * r;
  }
  return false;
}

bool is_inside(const Stroke& s, int x, int y) {
  const int64_t vx = s.to.x - s.from.x, vy = s.to.y - s.from.y, wx = x - s.from.x, wy = y - s.from.y;
  const int64_t length = vx * vx + vy * vy, along = vx * wx + vy * wy, across = vx * wy - vy * wx;
  return along >= 0 && along <= length && across * across <= length * s.half_width * s.half_width;
}

bool is_inside(const Panel& p, int x, int y) {
  return x >= p.corner.x && x < p.corner.x + p.width && y >= p.corner.y && y < p.corner.y + p.height;
}

bool is_inside(const Spot& s, int x, int y) {
  return x >= s.corner.x && x < s.corner.x + Spot::kSide && y >= s.corner.y && y < s.corner.y + Spot::kSide;
}

struct Box {
  int x0, y0, x1, y1;
};
Box box_of(const Figure& f) {
  return {f.centre.x - f.radius, f.centre.y - f.radius, f.centre.x + f.radius, f.centre.y + f.radius};
}
Box box_of(const Stroke& s) {
  const auto [x0, x1] = std::minmax(s.from.x, s.to.x);
  const auto [y0, y1] = std::minmax(s.from.y, s.to.y);
  return {x0 - s.half_width, y0 - s.half_width, x1 + s.half_width, y1 + s.half_width};
}
Box box_of(const Panel& p) {
  return {p.corner.x, p.corner.y, p.corner.x + p.width, p.corner.y + p.height};
}
Box box_of(const Spot& s) {
  return {s.corner.x, s.corner.y, s.corner.x + Spot::kSide, s.corner.y + Spot::kSide};
}

// ---- pixels ----

// A wave of period 4096 in -1024 … 1024: two parabolas, close to a sine.
int wave(int phase) {
  const int p = phase & 4095, half = p & 2047;
  const int height = half * (2048 - half) / 1024;
  return p < 2048 ? height : -height;
}

class Canvas {
 public:
  explicit Canvas(int side) : side_(side), rgb_(static_cast<size_t>(side) * side * 3), covers_(rgb_.size() / 3) {}

  void fill(const Background& b) {
    for (int y = 0; y < side_; ++y)
      for (int x = 0; x < side_; ++x) {
        const int phase = b.phase + (b.step_x * unit(x) + b.step_y * unit(y)) / kUnit;
        const int lift = b.amplitude * wave(phase) / 1024;
        set(x, y, {b.base.r + lift, b.base.g + lift, b.base.b + lift});
      }
  }

  // Four samples a pixel soften the edges.
  template <typename Thing>
  void paint(const Thing& thing, Cover cover) {
    const Box box = box_of(thing);
    for (int y = pixel(box.y0); y <= pixel(box.y1); ++y)
      for (int x = pixel(box.x0); x <= pixel(box.x1); ++x) {
        int hits = 0;
        for (int sample = 0; sample < 4; ++sample)
          hits += is_inside(thing, sample_at(x, sample & 1), sample_at(y, sample >> 1));
        if (hits > 0) blend(x, y, thing.paint, hits);
        if (hits >= 2) covers_[index(x, y)] = cover;
      }
  }

  Drawing finish(Draws& draws, int noise) && {
    Drawing drawing{{side_, side_, std::vector<uint8_t>(rgb_.size())}, std::move(covers_)};
    uint64_t bits = 0;
    for (size_t i = 0; i < rgb_.size(); ++i) {
      if (i % 8 == 0) bits = draws.next();
      const int offset = (static_cast<int>(bits & 0xFF) * (2 * noise + 1) >> 8) - noise;
      bits >>= 8;
      drawing.image.rgb[i] = static_cast<uint8_t>(std::clamp(rgb_[i] + offset, 0, 255));
    }
    return drawing;
  }

 private:
  // The middle of a pixel, and of its first or second half, in units of the scene.
  int unit(int pixel) const { return (2 * pixel + 1) * kExtent / (2 * side_); }
  int sample_at(int pixel, int half) const { return (4 * pixel + 1 + 2 * half) * kExtent / (4 * side_); }
  int pixel(int unit) const { return std::clamp(unit * side_ / kExtent, 0, side_ - 1); }
  size_t index(int x, int y) const { return static_cast<size_t>(y) * side_ + x; }

  void set(int x, int y, Rgb c) {
    int* p = &rgb_[3 * index(x, y)];
    p[0] = c.r, p[1] = c.g, p[2] = c.b;
  }
  void blend(int x, int y, Rgb c, int quarters) {
    int* p = &rgb_[3 * index(x, y)];
    p[0] += (c.r - p[0]) * quarters / 4;
    p[1] += (c.g - p[1]) * quarters / 4;
    p[2] += (c.b - p[2]) * quarters / 4;
  }

  int side_;
  std::vector<int> rgb_;
  std::vector<Cover> covers_;
};

// Who goes before whom, by Cover::By: a mark is small and lies on an object that would outweigh it.
constexpr std::array<int, 8> kRanks = {0, 2, 3, 4, 4, 5, 5, 1};

// What most of a box shows, by rank; of equals, spots and then the first objects.
Cover cover_of_box(const Drawing& drawing, const Box& box) {
  const auto order = [](Cover c) { return 256 * (c.by != Cover::By::kSpot) + c.object; };
  std::vector<std::pair<Cover, int>> counted;
  for (int y = box.y0; y < box.y1; ++y)
    for (int x = box.x0; x < box.x1; ++x) {
      const Cover cover = drawing.covers[static_cast<size_t>(y) * drawing.image.width + x];
      const auto found = std::ranges::find(counted, cover, &std::pair<Cover, int>::first);
      if (found != counted.end()) {
        ++found->second;
      } else {
        counted.emplace_back(cover, 1);
      }
    }
  Cover best;
  std::array<int, 3> highest{-1, 0, 0};
  for (const auto& [cover, pixels] : counted) {
    const std::array<int, 3> standing{kRanks[static_cast<size_t>(cover.by)], pixels, -order(cover)};
    const bool is_enough = 10 * pixels >= (box.x1 - box.x0) * (box.y1 - box.y0);
    if (is_enough && standing > highest) highest = standing, best = cover;
  }
  return best;
}

}  // namespace

Rgb jittered(Draws& draws, Rgb colour, int by) {
  return {colour.r + draws.between(-by, by), colour.g + draws.between(-by, by), colour.b + draws.between(-by, by)};
}

Rgb paint_of(Draws& draws, Colour colour) {
  return jittered(draws, kPaints[static_cast<size_t>(colour)], 12);
}

Background draw_background(Draws& draws) {
  Background b;
  const int grey = draws.between(80, 170);
  b.base = jittered(draws, {grey, grey, grey}, 12);
  b.amplitude = draws.between(6, 18);
  constexpr int kSlow = 120, kFast = 600;  // a period of 34 and of 7 pixels
  do {                                     // any direction
    b.step_x = draws.between(-kFast, kFast);
    b.step_y = draws.between(-kFast, kFast);
  } while (b.step_x * b.step_x + b.step_y * b.step_y < kSlow * kSlow ||
           b.step_x * b.step_x + b.step_y * b.step_y > kFast * kFast);
  b.phase = draws.between(0, 4095);
  b.noise = draws.between(4, 10);
  return b;
}

std::vector<Stroke> draw_strokes(Draws& draws, const Background& background, const StrokePlan& plan) {
  std::vector<Stroke> strokes(static_cast<size_t>(draws.between(plan.fewest, plan.most)));
  for (Stroke& s : strokes) {
    s.from = {draws.between(0, kExtent), draws.between(0, kExtent)};
    do {
      s.to = {s.from.x + draws.between(-28 * kUnit, 28 * kUnit), s.from.y + draws.between(-28 * kUnit, 28 * kUnit)};
    } while (std::abs(s.to.x - s.from.x) + std::abs(s.to.y - s.from.y) < 10 * kUnit);
    s.half_width = draws.between(kUnit / 2, 5 * kUnit / 4);
    const int step = draws.between(plan.faintest, plan.strongest) * (draws.below(2) ? 1 : -1);
    const Rgb& base = background.base;
    s.paint = jittered(draws, {base.r + step, base.g + step, base.b + step}, 14);
  }
  return strokes;
}

uint64_t scene_seed(Split split, uint64_t stream, uint64_t index) {
  const uint64_t mixed =
      SplitMix64::of_stream(SplitMix64::of_stream(stream, static_cast<uint64_t>(split)).next(), index).next();
  return mixed >> 1 | static_cast<uint64_t>(split) << 63;
}

Difficulty difficulty_named(std::string_view name) {
  const auto found = std::ranges::find(kDifficultyNames, name) - kDifficultyNames.begin();
  if (found == std::ssize(kDifficultyNames))
    throw Error("difficulty \"" + std::string(name) + "\": expected plain, clutter, distractor or hard");
  return {.clutter = (found & 1) != 0, .distractor = (found & 2) != 0};
}

Place Object::place() const {
  return static_cast<Place>(2 * (centre.y >= kExtent / 2) + (centre.x >= kExtent / 2));
}

Scene solo_scene(uint64_t seed, const Difficulty& difficulty, const WantedObject& wanted, std::optional<Colour> spot) {
  Draws draws(seed);
  Scene scene{
      .seed = seed, .background = draw_background(draws), .clutter = {}, .distractor = {}, .objects = {}, .spot = {}};
  Object object;
  // Drawn even when fixed, so that what follows does not depend on what was wanted.
  const auto shape = static_cast<Shape>(draws.below(kNumShapes));
  const auto colour = static_cast<Colour>(draws.below(kNumColours)),
             of_spot = static_cast<Colour>(draws.below(kNumColours));
  object.shape = wanted.shape.value_or(shape);
  object.colour = wanted.colour.value_or(colour);
  object.radius = draws.between(kMinRadius, kMaxRadius);
  object.centre = point_within(draws, 0, 0, kExtent, object.radius);
  object.paint = paint_of(draws, object.colour);
  scene.objects.push_back(object);
  scene.spot = draw_spot(draws, object, spot.value_or(of_spot));
  add_difficulty(draws, difficulty, scene);
  return scene;
}

Scene group_scene(uint64_t seed, const Difficulty& difficulty, int count, std::span<const WantedObject> wanted) {
  Draws draws(seed);
  Scene scene{
      .seed = seed, .background = draw_background(draws), .clutter = {}, .distractor = {}, .objects = {}, .spot = {}};
  const std::vector<Shape> shapes = distinct(draws, kNumShapes, count, wanted, &WantedObject::shape);
  const std::vector<Colour> colours = distinct(draws, kNumColours, count, wanted, &WantedObject::colour);
  const std::vector<Place> places = distinct(draws, kNumPlaces, count, wanted, &WantedObject::place);
  constexpr int kHalf = kExtent / 2;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    Object object;
    object.shape = shapes[i];
    object.colour = colours[i];
    object.radius = draws.between(kMinRadius, kMaxRadius);
    const int quarter = static_cast<int>(places[i]);
    object.centre = point_within(draws, quarter % 2 * kHalf, quarter / 2 * kHalf, kHalf, object.radius + kUnit / 2);
    object.paint = paint_of(draws, object.colour);
    scene.objects.push_back(object);
  }
  add_difficulty(draws, difficulty, scene);
  return scene;
}

Drawing draw(const Scene& scene, int side) {
  Canvas canvas(side);
  canvas.fill(scene.background);
  for (const Stroke& stroke : scene.clutter) canvas.paint(stroke, {Cover::By::kClutter});
  if (scene.screen)
    for (const Panel& window : scene.screen->windows) canvas.paint(window, {Cover::By::kWindow});
  if (scene.distractor) canvas.paint(*scene.distractor, {Cover::By::kDistractor});
  for (const Panel& bar : scene.bars) canvas.paint(bar, {Cover::By::kDistractor});
  for (size_t i = 0; i < scene.objects.size(); ++i) {
    const Cover cover{Cover::By::kObject, static_cast<uint8_t>(i)};
    if (scene.screen) canvas.paint(scene.screen->faces[i], cover);
    canvas.paint<Figure>(scene.objects[i], cover);
  }
  for (size_t i = 0; i < scene.marks.size(); ++i)
    canvas.paint<Panel>(scene.marks[i], {Cover::By::kMark, static_cast<uint8_t>(i)});
  if (scene.spot) canvas.paint(*scene.spot, {Cover::By::kSpot});
  if (scene.screen) canvas.paint(scene.screen->pointer, {Cover::By::kPointer});
  Draws noise = Draws(SplitMix64::of_stream(scene.seed, 1).next());
  return std::move(canvas).finish(noise, scene.background.noise);
}

std::vector<Cover> patch_covers(const Drawing& drawing, int rows, int cols) {
  const int width = drawing.image.width, height = drawing.image.height;
  std::vector<Cover> covers;
  for (int row = 0; row < rows; ++row)
    for (int col = 0; col < cols; ++col)
      covers.push_back(cover_of_box(
          drawing, {col * width / cols, row * height / rows, (col + 1) * width / cols, (row + 1) * height / rows}));
  return covers;
}

std::vector<int> patches_showing(std::span<const Cover> covers, Cover thing) {
  std::vector<int> patches;
  for (size_t i = 0; i < covers.size(); ++i)
    if (shows(covers[i], thing)) patches.push_back(static_cast<int>(i));
  return patches;
}

}  // namespace espalier::synth
