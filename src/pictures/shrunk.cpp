// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <string>

#include "espalier/error.h"
#include "espalier/image.h"
#include "pictures/image_transforms.h"

namespace espalier {

Image shrunk(const Image& image, int64_t max_pixels) {
  if (max_pixels < 1) throw Error("max_pixels: a number from 1 up was expected, got " + std::to_string(max_pixels));
  const int64_t width = image.width, height = image.height;
  if (width * height <= max_pixels) return image;
  const double scale = std::sqrt(static_cast<double>(max_pixels) / static_cast<double>(width * height));
  const auto scaled = [&](int64_t side, int64_t most) {
    return std::clamp(static_cast<int64_t>(static_cast<double>(side) * scale), int64_t{1}, std::min(side, most));
  };
  // The shorter side first: of a line a pixel wide, the longer one takes what is left.
  const bool is_wide = width >= height;
  const int64_t shorter = scaled(std::min(width, height), max_pixels);
  const int64_t longer = scaled(std::max(width, height), max_pixels / shorter);
  return resize_bicubic(image, static_cast<int>(is_wide ? longer : shorter),
                        static_cast<int>(is_wide ? shorter : longer));
}

}  // namespace espalier
