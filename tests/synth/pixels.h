// SPDX-License-Identifier: Apache-2.0
// What a picture's pixels say about colours.
#pragma once

#include <algorithm>
#include <map>
#include <utility>

#include "espalier/image.h"
#include "synth/scene.h"

namespace espalier::synth {

inline Rgb pixel_of(const Image& image, int x, int y) {
  const size_t at = 3 * (static_cast<size_t>(y) * static_cast<size_t>(image.width) + static_cast<size_t>(x));
  return {image.rgb[at], image.rgb[at + 1], image.rgb[at + 2]};
}

inline int saturation_of(Rgb c) {
  return std::max({c.r, c.g, c.b}) - std::min({c.r, c.g, c.b});
}

// Nearest of the six named colours by hue alone, computed here from the textbook formula.
inline int hue_of(Rgb c) {
  const int high = std::max({c.r, c.g, c.b}), range = saturation_of(c);
  if (range == 0) return 0;
  int hue = c.r == high   ? 60 * (c.g - c.b) / range
            : c.g == high ? 120 + 60 * (c.b - c.r) / range
                          : 240 + 60 * (c.r - c.g) / range;
  return hue < 0 ? hue + 360 : hue;
}
inline bool has_hue_of(Rgb c, Colour colour) {
  const std::map<Colour, std::pair<int, int>> ranges = {{Colour::kOrange, {16, 42}},
                                                        {Colour::kYellow, {43, 70}},
                                                        {Colour::kGreen, {100, 165}},
                                                        {Colour::kBlue, {205, 245}},
                                                        {Colour::kPurple, {260, 315}}};
  const int hue = hue_of(c);
  if (colour == Colour::kRed) return hue <= 15 || hue >= 345;
  return hue >= ranges.at(colour).first && hue <= ranges.at(colour).second;
}

}  // namespace espalier::synth
