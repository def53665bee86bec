// SPDX-License-Identifier: Apache-2.0
// A second way to say what a pixel of a crowded scene or a screen shows: the outlines' formulas in floating point,
// topmost thing first. The drawing (synth/scene.cpp) works in integers and paints from below.
#pragma once

#include <array>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "synth/scene.h"

namespace espalier::synth::test {

struct Place2 {  // of a corner, in radii
  double x, y;
};

inline bool is_inside(const std::vector<Place2>& corners, double x, double y) {  // winding by crossings
  bool inside = false;
  for (size_t i = 0, j = corners.size() - 1; i < corners.size(); j = i++) {
    const auto [xi, yi] = corners[i];
    const auto [xj, yj] = corners[j];
    if ((yi > y) != (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

inline bool is_inside(const Figure& f, double px, double py) {
  const double x = (px - f.centre.x) / f.radius, y = (py - f.centre.y) / f.radius, r = std::hypot(x, y);
  std::vector<Place2> corners;
  switch (f.shape) {
    case Shape::kCircle:
      return r <= 1;
    case Shape::kRing:
      return r <= 1 && r >= 0.56;
    case Shape::kSquare:
      return std::abs(x) <= 0.86 && std::abs(y) <= 0.86;
    case Shape::kCross:
      return (std::abs(x) <= 0.32 && std::abs(y) <= 0.96) || (std::abs(y) <= 0.32 && std::abs(x) <= 0.96);
    case Shape::kTriangle:
      return is_inside({{0, -1}, {0.95, 0.82}, {-0.95, 0.82}}, x, y);
    case Shape::kStar:
      for (int k = 0; k < 10; ++k) {
        const double angle = k * std::numbers::pi / 5, length = k % 2 ? 0.4 : 1.0;
        corners.push_back({length * std::sin(angle), -length * std::cos(angle)});
      }
      return is_inside(corners, x, y);
  }
  return false;
}

inline bool is_inside(const Panel& p, double x, double y) {
  return x >= p.corner.x && x < p.corner.x + p.width && y >= p.corner.y && y < p.corner.y + p.height;
}

// What is on top there: pointer, mark, label or object, button's face; background stands for all else.
inline Cover thing_at_point(const Scene& scene, double x, double y) {
  if (scene.screen && is_inside(scene.screen->pointer, x, y)) return {Cover::By::kPointer};
  for (size_t i = scene.marks.size(); i-- > 0;)
    if (is_inside(static_cast<const Panel&>(scene.marks[i]), x, y)) return {Cover::By::kMark, static_cast<uint8_t>(i)};
  for (size_t i = scene.objects.size(); i-- > 0;) {
    const bool is_on_face = scene.screen && is_inside(scene.screen->faces[i], x, y);
    if (is_on_face || is_inside(static_cast<const Figure&>(scene.objects[i]), x, y))
      return {Cover::By::kObject, static_cast<uint8_t>(i)};
  }
  return {};
}

// The same for a pixel of a picture of this side; nothing where an outline runs within a pixel of its middle.
inline std::optional<Cover> thing_at(const Scene& scene, int side, int x, int y) {
  const double unit = static_cast<double>(kExtent) / side;
  const auto at = [&](double dx, double dy) {
    return thing_at_point(scene, (x + 0.5 + dx) * unit, (y + 0.5 + dy) * unit);
  };
  const Cover middle = at(0, 0);
  for (int k = 0; k < 16; ++k) {
    const double angle = k * std::numbers::pi / 8;
    if (at(std::cos(angle), std::sin(angle)) != middle) return std::nullopt;
  }
  return middle;
}

}  // namespace espalier::synth::test
