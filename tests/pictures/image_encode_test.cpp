// SPDX-License-Identifier: Apache-2.0
#include "pictures/image_encode.h"

#include <gtest/gtest.h>

#include <random>

#include "espalier/error.h"

namespace espalier {
namespace {

Image noise(int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  std::mt19937 random(static_cast<unsigned>(width * 1000 + height));
  for (uint8_t& value : image.rgb) value = static_cast<uint8_t>(random());
  return image;
}

TEST(EncodePng, DecodesToTheSamePixels) {
  for (const auto& [width, height] : {std::pair(1, 1), std::pair(56, 56), std::pair(3, 200), std::pair(641, 7)}) {
    const Image image = noise(width, height);
    const Image read = decode_image(encode_png(image));
    EXPECT_EQ(read.width, width);
    EXPECT_EQ(read.height, height);
    EXPECT_EQ(read.rgb, image.rgb);
  }
}

TEST(EncodePng, RefusesWhatIsNoPicture) {
  EXPECT_THROW(encode_png({0, 5, {}}), Error);
  Image image = noise(4, 4);
  image.rgb.pop_back();
  EXPECT_THROW(encode_png(image), Error);
}

}  // namespace
}  // namespace espalier
