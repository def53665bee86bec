// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <cstring>

#include "base/json_file.h"
#include "base/limits.h"
#include "espalier/error.h"
#include "espalier/image.h"
#include "pictures/image_formats.h"

namespace espalier {
namespace {

// Reads the integers of a TIFF block in its own byte order; out of range is 0, which no valid field needs.
class TiffReader {
 public:
  TiffReader(Bytes bytes, bool big_endian) : bytes_(bytes), big_endian_(big_endian) {}

  uint32_t read(size_t offset, int size) const {
    if (offset > bytes_.size() || bytes_.size() - offset < static_cast<size_t>(size)) return 0;
    uint32_t value = 0;
    for (int i = 0; i < size; ++i) {
      const auto byte = std::to_integer<uint32_t>(bytes_[offset + static_cast<size_t>(i)]);
      value |= byte << 8 * (big_endian_ ? size - 1 - i : i);
    }
    return value;
  }

 private:
  Bytes bytes_;
  bool big_endian_;
};

DecodedImage decode(Bytes bytes, const std::string& name, int64_t max_pixels) {
  if (bytes.empty()) throw Error(name + ": empty file");
  if (is_jpeg(bytes)) return decode_jpeg(bytes, name, max_pixels);
  if (is_png(bytes)) return decode_png(bytes, name, max_pixels);
  if (is_webp(bytes)) return decode_webp(bytes, name, max_pixels);
  throw Error(name + ": not a JPEG, PNG or WebP image");
}

// Where the pixel (x, y) of the upright picture stands in the stored one: first + x * step_x + y * step_y.
struct Traversal {
  int64_t first, step_x, step_y;
  bool swaps_sides;
};

Traversal traversal_of(int orientation, int64_t w, int64_t h) {
  switch (orientation) {
    case 2:
      return {w - 1, -1, w, false};
    case 3:
      return {w * h - 1, -1, -w, false};
    case 4:
      return {w * (h - 1), 1, -w, false};
    case 5:
      return {0, w, 1, true};
    case 6:
      return {w * (h - 1), -w, 1, true};
    case 7:
      return {w * h - 1, -w, -1, true};
    case 8:
      return {w - 1, w, -1, true};
    default:
      return {0, 1, w, false};
  }
}

}  // namespace

int exif_orientation(Bytes exif) {
  constexpr std::array<char, 6> kPrefix = {'E', 'x', 'i', 'f', 0, 0};
  if (exif.size() >= 6 && std::memcmp(exif.data(), kPrefix.data(), 6) == 0) exif = exif.subspan(6);
  if (exif.size() < 8) return 1;
  const bool big_endian = std::memcmp(exif.data(), "MM\0*", 4) == 0;
  if (!big_endian && std::memcmp(exif.data(), "II*\0", 4) != 0) return 1;
  const TiffReader tiff(exif, big_endian);
  const size_t directory = tiff.read(4, 4);
  const uint32_t entries = tiff.read(directory, 2);
  for (uint32_t i = 0; i < entries; ++i) {
    constexpr uint32_t kOrientationTag = 0x0112, kShort = 3, kLong = 4;
    const size_t entry = directory + 2 + 12 * size_t{i};
    if (tiff.read(entry, 2) != kOrientationTag) continue;
    const uint32_t type = tiff.read(entry + 2, 2);
    const uint32_t value = type == kShort ? tiff.read(entry + 8, 2) : type == kLong ? tiff.read(entry + 8, 4) : 1;
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image decode_image(Bytes bytes, const std::string& name, int64_t max_pixels) {
  DecodedImage stored = decode(bytes, name, max_pixels);
  const Traversal from = traversal_of(stored.orientation, stored.width, stored.height);
  Image out{from.swaps_sides ? stored.height : stored.width, from.swaps_sides ? stored.width : stored.height, {}};
  if (stored.orientation == 1 && stored.channels == 3) {
    out.rgb = std::move(stored.pixels);
    return out;
  }
  out.rgb.resize(stored.pixels.size() / static_cast<size_t>(stored.channels) * 3);
  uint8_t* to = out.rgb.data();
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x, to += 3) {
      const uint8_t* pixel = stored.pixels.data() + stored.channels * (from.first + x * from.step_x + y * from.step_y);
      for (int c = 0; c < 3; ++c) to[c] = stored.channels == 4 ? over_white(pixel[c], pixel[3]) : pixel[c];
    }
  }
  return out;
}

Image read_image(const std::filesystem::path& file) {
  const std::string bytes = read_text_file(file, limits::kPictureFileBytes);
  return decode_image(std::as_bytes(std::span(bytes)), file.string());
}

}  // namespace espalier
