// SPDX-License-Identifier: Apache-2.0
// A decoded picture, and how to read one. Nothing here knows what a model does with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "espalier/error.h"

namespace espalier {

// How a pixel of foreign memory is stored, one byte per channel in this order. Alpha is composited onto white, grey is
// repeated to three channels, as decode_image does it.
enum class PixelFormat : uint8_t { kRgb, kBgr, kRgba, kBgra, kGrey };

// 8-bit RGB, row-major, three bytes per pixel, no padding between rows: rgb.size() == 3 * width * height. Whoever takes
// a picture throws Error where that does not hold.
struct Image {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgb = {};

  // A copy of pixels in another layout: a frame of a camera, a picture of another library. `stride`: bytes from one row
  // to the next; 0: rows follow one another without padding. Throws Error unless `pixels` holds all rows and the size
  // is one that check() lets pass.
  static Image from(std::span<const uint8_t> pixels, int width, int height, int64_t stride, PixelFormat format);
};

// A rectangle in pixels of a picture, x1 and y1 exclusive. It may reach over the edges, and begin between two pixels.
struct PixelBox {
  double x0 = 0, y0 = 0, x1 = 0, y1 = 0;
  bool operator==(const PixelBox&) const = default;
};

// Largest width * height that is decoded. The header is checked before any pixel is, so that a small file
// cannot ask for a huge picture.
inline constexpr int64_t kMaxImagePixels = 100'000'000;

class ImageTooLarge : public Error {
 public:
  using Error::Error;
};
// Throws Error, with `name` in front, for a picture without pixels, of more than kMaxImagePixels, or with another
// number of bytes than its size asks for.
void check(const Image& image, const std::string& name = "image");

// JPEG, PNG or WebP, told apart by content and not by name. EXIF orientation is applied, grey is repeated to
// three channels, anything with alpha is composited onto white. `name` stands in error messages.
// Throws Error for an empty, truncated or foreign file, ImageTooLarge for more than `max_pixels`.
Image decode_image(std::span<const std::byte> bytes, const std::string& name = "image",
                   int64_t max_pixels = kMaxImagePixels);
Image read_image(const std::filesystem::path& file);
// As many pixels at most, in the same proportion, at least one a side: bicubic, as Pillow does it. A picture that has
// no more comes back as it is. Throws Error for max_pixels below 1.
Image shrunk(const Image& image, int64_t max_pixels);

}  // namespace espalier
