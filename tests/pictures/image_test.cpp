// SPDX-License-Identifier: Apache-2.0
#include "espalier/image.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

using Pixels = std::vector<uint8_t>;

TEST(CheckImage, WantsAsManyBytesAsTheSizeSays) {
  EXPECT_NO_THROW(check(Image{2, 1, {1, 2, 3, 4, 5, 6}}));
  EXPECT_ERROR(check(Image{10, 10, {}}, "prompt: image 3"),
               "prompt: image 3: an image of 10x10 pixels has 300 bytes of RGB, got 0");
  EXPECT_ERROR(check(Image{2, 1, Pixels(5)}), "has 6 bytes of RGB, got 5");
  EXPECT_ERROR(check(Image{2, 1, Pixels(7)}), "has 6 bytes of RGB, got 7");
  EXPECT_ERROR(check(Image{0, 1, {}}), "an image of 0x1 has no pixels");
  EXPECT_ERROR(check(Image{-5, -5, Pixels(75)}), "an image of -5x-5 has no pixels");
  EXPECT_ERROR(check(Image{100'000'001, 1, {}}), "at most 100000000 are taken");
  constexpr int kMost = std::numeric_limits<int>::max();
  EXPECT_ERROR(check(Image{kMost, kMost, Pixels(3)}), "at most 100000000 are taken");
}

TEST(ImageFrom, ReadsEveryFormat) {
  const Pixels rgb = {1, 2, 3, 4, 5, 6};
  EXPECT_EQ(Image::from(rgb, 2, 1, 0, PixelFormat::kRgb).rgb, rgb);
  EXPECT_EQ(Image::from(rgb, 1, 2, 0, PixelFormat::kBgr).rgb, (Pixels{3, 2, 1, 6, 5, 4}));
  EXPECT_EQ(Image::from(Pixels{7, 8}, 2, 1, 0, PixelFormat::kGrey).rgb, (Pixels{7, 7, 7, 8, 8, 8}));
  // Alpha onto white: 255 stays, 0 is white, 128 of 10 is 10 * 128/255 + 127 = 132.02.
  const Pixels rgba = {10, 20, 30, 255, 10, 20, 30, 0, 10, 10, 10, 128};
  EXPECT_EQ(Image::from(rgba, 3, 1, 0, PixelFormat::kRgba).rgb, (Pixels{10, 20, 30, 255, 255, 255, 132, 132, 132}));
  EXPECT_EQ(Image::from(rgba, 3, 1, 0, PixelFormat::kBgra).rgb, (Pixels{30, 20, 10, 255, 255, 255, 132, 132, 132}));
}

TEST(ImageFrom, StepsOverThePaddingOfRows) {
  const Pixels frame = {1, 2, 9, 9, 3, 4, 9, 9, 5, 6};  // the last row ends with its pixels
  const Image image = Image::from(frame, 2, 3, 4, PixelFormat::kGrey);
  EXPECT_EQ(image.width, 2);
  EXPECT_EQ(image.height, 3);
  EXPECT_EQ(image.rgb, (Pixels{1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6}));
}

TEST(ImageFrom, RefusesWhatDoesNotHoldThePixels) {
  const Pixels ten(10);
  EXPECT_ERROR(Image::from(ten, 2, 3, 5, PixelFormat::kGrey), "need more than the 10 bytes that were given");
  EXPECT_ERROR(Image::from(ten, 2, 2, 5, PixelFormat::kRgb), "a stride of 5 bytes, a row of 2 pixels has 6");
  EXPECT_ERROR(Image::from(ten, 2, 2, -6, PixelFormat::kRgb), "a stride of -6 bytes");
  EXPECT_ERROR(Image::from(ten, 1, 3, std::numeric_limits<int64_t>::max(), PixelFormat::kGrey), "need more than");
  EXPECT_ERROR(Image::from(ten, 0, 3, 0, PixelFormat::kGrey), "an image of 0x3 has no pixels");
  EXPECT_ERROR(Image::from(ten, 2'000'000'000, 2'000'000'000, 0, PixelFormat::kGrey), "at most 100000000 are taken");
  EXPECT_ERROR(Image::from(ten, 1, 1, 0, static_cast<PixelFormat>(99)), "unknown format");
}

}  // namespace
}  // namespace espalier
