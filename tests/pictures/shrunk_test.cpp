// SPDX-License-Identifier: Apache-2.0
// Pictures made smaller: at most as many pixels as asked for, and nearly as many.
#include <gtest/gtest.h>

#include <algorithm>

#include "espalier/error.h"
#include "espalier/image.h"
#include "pictures/image_transforms.h"

namespace espalier {
namespace {

Image ramp(int width, int height) {
  Image image{width, height, std::vector<uint8_t>(size_t{3} * width * height)};
  for (size_t i = 0; i < image.rgb.size(); ++i) image.rgb[i] = static_cast<uint8_t>(i % 251);
  return image;
}

TEST(Shrunk, KeepsProportionAndStaysBelow) {
  const Image half = shrunk(ramp(400, 200), 400 * 200 / 4);
  EXPECT_EQ(half.width, 200);
  EXPECT_EQ(half.height, 100);
  EXPECT_EQ(half.rgb, resize_bicubic(ramp(400, 200), 200, 100).rgb);
  const Image tall = shrunk(ramp(30, 77), 1000);
  EXPECT_LE(tall.width * tall.height, 1000);
  EXPECT_GE((tall.width + 1) * (tall.height + 1), 1000);
  EXPECT_NEAR(77.0 / 30, double(tall.height) / tall.width, 0.2);
}

TEST(Shrunk, LeavesSmallerPicturesAlone) {
  const Image image = ramp(7, 5);
  EXPECT_EQ(shrunk(image, 35).rgb, image.rgb);
  EXPECT_EQ(shrunk(image, 1'000'000).width, 7);
}

TEST(Shrunk, LinesAndPointsKeepAPixelASide) {
  const Image line = shrunk(ramp(1, 3000), 100);
  EXPECT_EQ(line.width, 1);
  EXPECT_LE(line.height, 100);
  const Image point = shrunk(ramp(900, 2), 1);
  EXPECT_EQ(point.width * point.height, 1);
  EXPECT_THROW(shrunk(ramp(2, 2), 0), Error);
}

}  // namespace
}  // namespace espalier
