// SPDX-License-Identifier: Apache-2.0
// What all kinds of scenes draw alike: paints, grounds and strokes.
#pragma once

#include <vector>

#include "synth/draws.h"
#include "synth/scene.h"

namespace espalier::synth {

// Each channel moved by up to `by`.
Rgb jittered(Draws& draws, Rgb colour, int by);
// A shade of a named colour.
Rgb paint_of(Draws& draws, Colour colour);
Background draw_background(Draws& draws);

struct StrokePlan {
  int fewest = 0, most = 0;         // how many
  int faintest = 0, strongest = 0;  // brighter or darker than the ground, of 255
};
// As busy as objects that stand close to each other.
inline constexpr StrokePlan kBusyGround = {.fewest = 90, .most = 120, .faintest = 40, .strongest = 90};
// Dull ones, anywhere.
std::vector<Stroke> draw_strokes(Draws& draws, const Background& background, const StrokePlan& plan);

}  // namespace espalier::synth
