// SPDX-License-Identifier: Apache-2.0
#include <png.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "base/json_file.h"
#include "base/safetensors.h"
#include "espalier/image.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

const std::filesystem::path kImages = test::golden_folder() / "images";

std::string bytes_of(const char* name) {
  return read_text_file(kImages / name);
}

Image decode(const std::string& bytes) {
  return decode_image(std::as_bytes(std::span(bytes)), "picture");
}

TEST(DecodeImage, EqualsPillow) {
  const auto expected = SafetensorsFile::open(kImages / "expected.safetensors");
  ASSERT_GE(expected.tensors().size(), 30u);
  for (const auto& [name, view] : expected.tensors()) {
    SCOPED_TRACE(name);
    const Image image = read_image(kImages / name);
    ASSERT_EQ((std::vector<int64_t>{image.height, image.width, 3}), view.shape);
    ASSERT_EQ(image.rgb.size(), view.bytes.size());
    const auto* wanted = reinterpret_cast<const uint8_t*>(view.bytes.data());
    int largest = 0;
    for (size_t i = 0; i < image.rgb.size(); ++i) largest = std::max(largest, std::abs(image.rgb[i] - wanted[i]));
    EXPECT_EQ(largest, 0);
  }
}

// A PNG of one colour, to have sizes that would be large in the repository.
std::string plain_png(uint32_t width, uint32_t height) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  header.width = width;
  header.height = height;
  header.format = PNG_FORMAT_RGB;
  const std::vector<uint8_t> pixels(size_t{3} * width * height, 77);
  png_alloc_size_t size = 0;
  png_image_write_to_memory(&header, nullptr, &size, 0, pixels.data(), 0, nullptr);
  std::string out(size, '\0');
  png_image_write_to_memory(&header, out.data(), &size, 0, pixels.data(), 0, nullptr);
  out.resize(size);
  return out;
}

TEST(DecodeImage, ReadsExtremeShapes) {
  for (const auto& [width, height] : {std::pair<int, int>{1, 1}, {20000, 100}, {100, 20000}, {1, 4000}}) {
    const Image image = decode(plain_png(width, height));
    EXPECT_EQ(image.width, width);
    EXPECT_EQ(image.height, height);
    EXPECT_EQ(image.rgb, std::vector<uint8_t>(size_t{3} * width * height, 77));
  }
}

TEST(DecodeImage, TellsFormatsApartByContent) {
  TemporaryFolder folder;
  EXPECT_EQ(read_image(folder.write("really_a_jpeg.png", bytes_of("420.jpg"))).rgb,
            read_image(kImages / "420.jpg").rgb);
}

TEST(DecodeImage, RefusesWhatIsNoImage) {
  TemporaryFolder folder;
  EXPECT_ERROR(read_image(folder / "absent.png"), "absent.png: no such file");
  EXPECT_ERROR(read_image(folder.path()), "not a regular file");
  EXPECT_ERROR(read_image(folder.write("empty.jpg", "")), "empty.jpg: empty file");
  EXPECT_ERROR(decode("hello"), "picture: not a JPEG, PNG or WebP image");
  EXPECT_ERROR(decode("GIF89a"), "not a JPEG, PNG or WebP image");
  EXPECT_ERROR(decode("\x89PNG\r\n\x1a"), "not a JPEG, PNG or WebP image");
  EXPECT_ERROR(decode(bytes_of("animated.webp")), "animated WebP is not supported");
  EXPECT_ERROR(decode(bytes_of("gray_16bit.png")), "16-bit grey PNG is not supported");
}

class TruncatedTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TruncatedTest, IsRefusedAtEveryLength) {
  const std::string whole = bytes_of(GetParam());
  for (size_t size = 12; size < whole.size(); ++size) {
    EXPECT_ERROR(decode(whole.substr(0, size)), "truncated") << size;
  }
}

INSTANTIATE_TEST_SUITE_P(, TruncatedTest,
                         ::testing::Values("420.jpg", "444_progressive.jpg", "orientation_6.jpg", "rgb.png",
                                           "interlaced.png", "orientation_6.png", "lossy.webp", "lossless.webp"));

TEST(DecodeImage, AcceptsHarmlessBytesBehindTheImage) {
  for (const char* name : {"420.jpg", "rgb.png", "lossless.webp"}) {
    EXPECT_EQ(decode(bytes_of(name) + "tail").rgb, read_image(kImages / name).rgb) << name;
  }
}

TEST(DecodeImage, RefusesBrokenFiles) {
  std::string png = bytes_of("rgb.png");
  png[60] ^= 0x55;  // inside the compressed data: its checksum no longer fits
  EXPECT_ERROR(decode(png), "picture: broken PNG: ");
  std::string webp = bytes_of("lossless.webp");
  webp[20] ^= 0x55;  // the signature of the lossless stream
  EXPECT_ERROR(decode(webp), "picture: broken WebP");
  std::string jpeg = bytes_of("420.jpg");
  jpeg[jpeg.find("\xff\xc0") + 4] = 3;  // samples of 3 bits
  EXPECT_ERROR(decode(jpeg), "picture: broken JPEG: ");
}

// The header is judged before memory is asked for: 65500 x 65500 would be 12 GB.
TEST(DecodeImage, RefusesTooManyPixels) {
  std::string png = plain_png(1, 1);
  png.replace(16, 8, std::string("\x00\x00\xff\xdc\x00\x00\xff\xdc", 8));
  png.replace(29, 4, [&] {  // the checksum of IHDR
    const auto* header = reinterpret_cast<const unsigned char*>(png.data() + 12);
    uint32_t crc = ~0u;
    for (int i = 0; i < 17; ++i) {
      crc ^= header[i];
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
    }
    crc = ~crc;
    std::string bytes;
    for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<char>(crc >> shift));
    return bytes;
  }());
  EXPECT_ERROR(decode(png), "picture: image of 65500x65500 pixels, at most 100000000 are decoded");
  std::string jpeg = bytes_of("420.jpg");
  jpeg.replace(jpeg.find("\xff\xc0") + 5, 4, "\xff\xdc\xff\xdc");
  EXPECT_ERROR(decode(jpeg), "picture: image of 65500x65500 pixels");
  std::string webp = bytes_of("lossless.webp");
  webp.replace(21, 4, std::string("\xff\xff\xff\x0f", 4));  // 14 bits each
  EXPECT_ERROR(decode(webp), "picture: image of 16384x16384 pixels");
}

// A broken EXIF block must not cost the picture: every byte of the block in turn set to 0xFF.
TEST(DecodeImage, SurvivesBrokenExif) {
  const std::string whole = bytes_of("orientation_6.jpg");
  const size_t begin = whole.find("Exif") + 6;
  for (size_t i = begin; i < begin + 26; ++i) {
    std::string broken = whole;
    broken[i] = '\xff';
    EXPECT_EQ(decode(broken).rgb.size(), size_t{3 * 7 * 11}) << i;
  }
}

// Whatever is wrong with a file, it is decoded or refused with an Error; the sanitizers watch the rest.
TEST(DecodeImage, SurvivesRandomDamage) {
  std::mt19937 random(7);
  for (const char* name : {"420.jpg", "444_progressive.jpg", "orientation_6.jpg", "palette_alpha.png",
                           "orientation_6.png", "lossy_alpha.webp", "lossless.webp", "orientation_6.webp"}) {
    const std::string whole = bytes_of(name);
    for (int round = 0; round < 200; ++round) {
      std::string damaged = whole;
      for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
      try {
        const Image image = decode(damaged);
        EXPECT_EQ(image.rgb.size(), size_t{3} * image.width * image.height);
      } catch (const Error&) {
        continue;
      }
    }
  }
}

}  // namespace
}  // namespace espalier
