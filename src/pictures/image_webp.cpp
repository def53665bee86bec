// SPDX-License-Identifier: Apache-2.0
#include <webp/decode.h>

#include <cstring>

#include "espalier/error.h"
#include "pictures/image_formats.h"

namespace espalier {
namespace {

// The body of the first chunk with this name in a RIFF file, or nothing.
Bytes find_chunk(Bytes file, const char* name) {
  for (size_t i = 12; i + 8 <= file.size();) {
    uint32_t size = 0;  // little-endian, as everything here
    std::memcpy(&size, file.data() + i + 4, 4);
    const Bytes body = file.subspan(i + 8);
    if (size > body.size()) break;
    if (std::memcmp(file.data() + i, name, 4) == 0) return body.first(size);
    i += 8 + size_t{size} + (size & 1);
  }
  return {};
}

}  // namespace

bool is_webp(Bytes bytes) {
  return bytes.size() >= 12 && std::memcmp(bytes.data(), "RIFF", 4) == 0 &&
         std::memcmp(bytes.data() + 8, "WEBP", 4) == 0;
}

DecodedImage decode_webp(Bytes bytes, const std::string& name, int64_t max_pixels) {
  const auto* data = reinterpret_cast<const uint8_t*>(bytes.data());
  const auto check = [&](VP8StatusCode status) {
    if (status == VP8_STATUS_NOT_ENOUGH_DATA || status == VP8_STATUS_SUSPENDED) throw Error(name + ": truncated WebP");
    if (status != VP8_STATUS_OK) throw Error(name + ": broken WebP (libwebp status " + std::to_string(status) + ")");
  };
  WebPDecoderConfig config;
  if (!WebPInitDecoderConfig(&config)) throw Error(name + ": cannot start the WebP decoder");
  check(WebPGetFeatures(data, bytes.size(), &config.input));
  check_image_size(config.input.width, config.input.height, name, max_pixels);
  if (config.input.has_animation) throw Error(name + ": animated WebP is not supported");
  DecodedImage image{config.input.width, config.input.height, config.input.has_alpha ? 4 : 3, {}};
  const size_t stride = static_cast<size_t>(image.width) * image.channels;
  image.pixels.resize(stride * image.height);
  config.output.colorspace = image.channels == 4 ? MODE_RGBA : MODE_RGB;
  config.output.is_external_memory = 1;
  config.output.u.RGBA = {image.pixels.data(), static_cast<int>(stride), image.pixels.size()};
  check(WebPDecode(data, bytes.size(), &config));
  image.orientation = exif_orientation(find_chunk(bytes, "EXIF"));
  return image;
}

}  // namespace espalier
