// SPDX-License-Identifier: Apache-2.0
#include "espalier/image.h"

#include <array>

#include "base/error_text.h"
#include "espalier/error.h"
#include "pictures/image_formats.h"

namespace espalier {
namespace {

struct Channels {
  int64_t bytes;           // of a pixel
  std::array<int, 3> rgb;  // where red, green and blue stand in it
  int alpha;               // -1: none
};

Channels channels_of(PixelFormat format) {
  switch (format) {
    case PixelFormat::kRgb:
      return {3, {0, 1, 2}, -1};
    case PixelFormat::kBgr:
      return {3, {2, 1, 0}, -1};
    case PixelFormat::kRgba:
      return {4, {0, 1, 2}, 3};
    case PixelFormat::kBgra:
      return {4, {2, 1, 0}, 3};
    case PixelFormat::kGrey:
      return {1, {0, 0, 0}, -1};
  }
  throw Error("image: an unknown format of pixels");
}

}  // namespace

void check_image_size(int64_t width, int64_t height, const std::string& name, int64_t max_pixels) {
  const std::string size = text_of(width, "x", height);
  if (width <= 0 || height <= 0) throw Error(text_of(name, ": an image of ", size, " has no pixels"));
  if (width > max_pixels / height)
    throw ImageTooLarge(text_of(name, ": an image of ", size, " pixels, at most ", max_pixels, " are taken"));
}

void check(const Image& image, const std::string& name) {
  check_image_size(image.width, image.height, name, kMaxImagePixels);
  const int64_t expected = int64_t{3} * image.width * image.height;
  if (std::ssize(image.rgb) != expected)
    throw Error(text_of(name, ": an image of ", image.width, "x", image.height, " pixels has ", expected,
                        " bytes of RGB, got ", image.rgb.size(), " (Image::from takes grey, BGRA and others)"));
}

Image Image::from(std::span<const uint8_t> pixels, int width, int height, int64_t stride, PixelFormat format) {
  check_image_size(width, height, "image", kMaxImagePixels);
  const Channels from = channels_of(format);
  const int64_t row = from.bytes * width, step = stride == 0 ? row : stride;
  if (step < row) throw Error(text_of("image: a stride of ", stride, " bytes, a row of ", width, " pixels has ", row));
  int64_t needed = 0;  // the last row needs no padding
  if (__builtin_mul_overflow(step, int64_t{height} - 1, &needed) || __builtin_add_overflow(needed, row, &needed) ||
      std::ssize(pixels) < needed)
    throw Error(text_of("image: ", width, "x", height, " pixels in rows of ", step, " bytes need more than the ",
                        pixels.size(), " bytes that were given"));
  Image out{width, height, std::vector<uint8_t>(static_cast<size_t>(3) * width * height)};
  uint8_t* to = out.rgb.data();
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* pixel = pixels.data() + y * step;
    for (int64_t x = 0; x < width; ++x, pixel += from.bytes, to += 3)
      for (size_t c = 0; c < 3; ++c)
        to[c] = from.alpha < 0 ? pixel[from.rgb[c]] : over_white(pixel[from.rgb[c]], pixel[from.alpha]);
  }
  return out;
}

}  // namespace espalier
