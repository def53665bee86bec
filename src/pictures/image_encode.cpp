// SPDX-License-Identifier: Apache-2.0
#include "pictures/image_encode.h"

#include <png.h>

#include <string>

#include "espalier/error.h"

namespace espalier {

std::vector<std::byte> encode_png(const Image& image) {
  const std::string size = std::to_string(image.width) + " x " + std::to_string(image.height);
  if (image.width < 1 || image.height < 1) throw Error("PNG: a picture of " + size + " has no pixels");
  if (image.rgb.size() != size_t{3} * image.width * image.height)
    throw Error("PNG: a picture of " + size + " has three bytes a pixel, got " + std::to_string(image.rgb.size()) +
                " bytes");
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = static_cast<png_uint_32>(image.width);
  header.height = static_cast<png_uint_32>(image.height);
  header.format = PNG_FORMAT_RGB;
  std::vector<std::byte> bytes(PNG_IMAGE_PNG_SIZE_MAX(header));  // enough for any content: one pass writes it
  png_alloc_size_t written = bytes.size();
  if (!png_image_write_to_memory(&header, bytes.data(), &written, 0, image.rgb.data(), 0, nullptr))
    throw Error("PNG: cannot encode a picture of " + size + ": " + header.message);
  bytes.resize(written);
  return bytes;
}

}  // namespace espalier
