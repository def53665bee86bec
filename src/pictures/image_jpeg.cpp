// SPDX-License-Identifier: Apache-2.0
#include <turbojpeg.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "base/error_text.h"
#include "base/limits.h"
#include "espalier/error.h"
#include "pictures/image_formats.h"

namespace espalier {
namespace {

struct Layout {
  bool complete = false;  // the end marker was reached
  int64_t scans = 0;
  Bytes exif;
};

constexpr uint8_t kEndOfImage = 0xD9, kStartOfScan = 0xDA, kApp1 = 0xE1;

uint8_t at(Bytes bytes, size_t i) {
  return std::to_integer<uint8_t>(bytes[i]);
}

// First marker at or after `i` in entropy-coded data, where FF 00 is a byte and FF D0…D7 a restart.
size_t skip_scan(Bytes bytes, size_t i) {
  for (; i + 1 < bytes.size(); ++i) {
    if (at(bytes, i) != 0xFF) continue;
    const uint8_t marker = at(bytes, i + 1);
    if (marker != 0x00 && marker != 0xFF && (marker < 0xD0 || marker > 0xD7)) return i;
  }
  return bytes.size();
}

// Walks the segments to the end of the picture. The decoder itself fills what is missing of a cut file with grey and
// calls it a warning, as it does for harmless stray bytes: this tells the two apart.
Layout walk(Bytes bytes) {
  Layout layout;
  size_t i = 2;  // behind the start marker
  while (i + 1 < bytes.size()) {
    const uint8_t marker = at(bytes, i + 1);
    if (at(bytes, i) != 0xFF || marker == 0xFF || marker == 0x00) {  // padding or stray bytes between segments
      ++i;
      continue;
    }
    if (marker == kEndOfImage) {
      layout.complete = true;
      return layout;
    }
    i += 2;
    if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) continue;  // markers without a body
    if (i + 2 > bytes.size()) return layout;
    const size_t length = static_cast<size_t>(at(bytes, i) << 8 | at(bytes, i + 1));
    if (length < 2 || length > bytes.size() - i) return layout;
    const Bytes body = bytes.subspan(i + 2, length - 2);
    if (marker == kApp1 && layout.exif.empty() && body.size() >= 6 && std::memcmp(body.data(), "Exif\0\0", 6) == 0) {
      layout.exif = body;
    }
    i += length;
    if (marker != kStartOfScan) continue;
    i = skip_scan(bytes, i);
    ++layout.scans;
  }
  return layout;
}

// Four inks to RGB as Pillow does it: the values in the file are inverted (Adobe's convention), no colour profile.
std::vector<uint8_t> cmyk_to_rgb(const std::vector<uint8_t>& inks) {
  std::vector<uint8_t> rgb;
  rgb.reserve(inks.size() / 4 * 3);
  for (size_t i = 0; i < inks.size(); i += 4) {
    const int light = inks[i + 3];
    for (size_t c = 0; c < 3; ++c) {
      const int product = (255 - inks[i + c]) * light + 128;
      rgb.push_back(static_cast<uint8_t>(light - (((product >> 8) + product) >> 8)));
    }
  }
  return rgb;
}

// Each scan of a progressive picture may say nothing in a few bytes and still costs a pass over all coefficients.
void check_scans(int64_t scans, int64_t pixels, const std::string& name) {
  const int64_t most = std::min(limits::kJpegScans, std::max(int64_t{10}, limits::kJpegScannedPixels / pixels));
  if (scans > most)
    throw Error(text_of(name, ": JPEG of ", scans, " scans, at most ", most, " are decoded at its size"));
}

}  // namespace

bool is_jpeg(Bytes bytes) {
  return bytes.size() >= 3 && std::memcmp(bytes.data(), "\xff\xd8\xff", 3) == 0;
}

DecodedImage decode_jpeg(Bytes bytes, const std::string& name, int64_t max_pixels) {
  const auto handle = std::unique_ptr<void, int (*)(tjhandle)>(tjInitDecompress(), tjDestroy);
  const auto fail = [&] { throw Error(name + ": broken JPEG: " + tjGetErrorStr2(handle.get())); };
  if (!handle) throw Error(name + ": cannot start the JPEG decoder");
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const Layout layout = walk(bytes);
  if (!layout.complete) throw Error(name + ": truncated JPEG");
  DecodedImage image;
  int subsampling = 0, colorspace = 0;
  if (tjDecompressHeader3(handle.get(), data, bytes.size(), &image.width, &image.height, &subsampling, &colorspace) <
          0 &&
      tjGetErrorCode(handle.get()) == TJERR_FATAL) {
    fail();
  }
  check_image_size(image.width, image.height, name, max_pixels);
  check_scans(layout.scans, int64_t{image.width} * image.height, name);
  const bool inks = colorspace == TJCS_CMYK || colorspace == TJCS_YCCK;
  const int format = inks ? TJPF_CMYK : TJPF_RGB;
  image.pixels.resize(static_cast<size_t>(image.width) * image.height * tjPixelSize[format]);
  if (tjDecompress2(handle.get(), data, bytes.size(), image.pixels.data(), image.width, 0, image.height, format,
                    TJFLAG_ACCURATEDCT | TJFLAG_LIMITSCANS) < 0 &&
      tjGetErrorCode(handle.get()) == TJERR_FATAL) {
    fail();
  }
  if (inks) image.pixels = cmyk_to_rgb(image.pixels);
  image.orientation = exif_orientation(layout.exif);
  return image;
}

}  // namespace espalier
