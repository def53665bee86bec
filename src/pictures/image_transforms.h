// SPDX-License-Identifier: Apache-2.0
// The steps that image processors are made of: resize, crop, pad, normalise. Each is bit-equal to what Pillow 12.3 and
// NumPy do in Transformers' PIL backend. Which steps a checkpoint wants, and in which order, is not known here.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "espalier/image.h"

namespace espalier {

using Color = std::array<uint8_t, 3>;

struct Window {  // a rectangle of pixels
  int left, top, width, height;
};

// Antialiased bicubic (a = -0.5) to width x height, rows before columns (but for very tall pictures, as Pillow), each
// pass rounded to 8 bits.
Image resize_bicubic(const Image& image, int width, int height);

// The part `window` of what resize_bicubic would give, without computing the rest: a 1 x 20000 picture resized by its
// short side is huge, what is then cropped out of it is not. The window must lie inside width x height.
Image resize_bicubic(const Image& image, int width, int height, const Window& window);

// The window of a width x height picture that a centre crop takes; sides longer than the picture reach over its edges.
Window center_window(int width, int height, int crop_width, int crop_height);

// The pixels of `window`, black where it reaches over the edges.
Image crop(const Image& image, const Window& window);
Image center_crop(const Image& image, int width, int height);

// The picture in the middle of a square of its longer side (the odd pixel at the right or bottom).
Image pad_to_square(const Image& image, const Color& color);

// For each channel the value of every grey level: ((level * scale) - mean) / std in float32, the product in float64.
struct Normalization {
  double scale = 1.0;
  std::array<float, 3> mean = {0, 0, 0};
  std::array<float, 3> std = {1, 1, 1};
};

// [3, height, width], appended to `out`.
void normalize(const Image& image, const Normalization& normalization, std::vector<float>& out);

}  // namespace espalier
