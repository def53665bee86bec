// SPDX-License-Identifier: Apache-2.0
// One decoder for each file format that decode_image knows. They stop where the formats differ: orientation and
// transparency are handed on, not applied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace espalier {

struct DecodedImage {
  int width = 0;
  int height = 0;
  int channels = 3;  // 4: with straight (not premultiplied) alpha
  std::vector<uint8_t> pixels;
  int orientation = 1;  // 1 to 8, as EXIF counts
};

using Bytes = std::span<const std::byte>;

bool is_jpeg(Bytes bytes);
bool is_png(Bytes bytes);
bool is_webp(Bytes bytes);

DecodedImage decode_jpeg(Bytes bytes, const std::string& name, int64_t max_pixels);
DecodedImage decode_png(Bytes bytes, const std::string& name, int64_t max_pixels);
DecodedImage decode_webp(Bytes bytes, const std::string& name, int64_t max_pixels);

// alpha * value + (1 - alpha) * white, rounded to the nearest, as Pillow's alpha_composite onto opaque white.
inline uint8_t over_white(uint32_t value, uint32_t alpha) {
  return static_cast<uint8_t>((value * alpha + 255 * (255 - alpha) + 127) / 255);
}

// Throws Error for a size without pixels, ImageTooLarge for one over `max_pixels`: to be called before memory is asked
// for.
void check_image_size(int64_t width, int64_t height, const std::string& name, int64_t max_pixels);

// The orientation in an EXIF block (a TIFF header, with or without "Exif\0\0" before it); 1 when there is none or the
// block is broken, since a picture is worth more than its metadata.
int exif_orientation(Bytes exif);

}  // namespace espalier
