// SPDX-License-Identifier: Apache-2.0
#include <png.h>
#include <zlib.h>

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

// ---- PNGs byte by byte, with what encoders rarely write ----

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

std::string chunk(const std::string& kind, const std::string& data) {
  const std::string body = kind + data;
  const auto sum = ::crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(static_cast<uint32_t>(sum));
}

// `rows`: samples with a filter byte in front of each row. `key`: of a tRNS chunk, may be empty.
std::string hand_made_png(uint32_t width, uint32_t height, char depth, char color, const std::string& rows,
                          const std::string& key = "") {
  std::string packed(::compressBound(rows.size()), '\0');
  uLongf size = packed.size();
  ::compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()), rows.size());
  packed.resize(size);
  const std::string header = big_endian(width) + big_endian(height) + depth + color + std::string(3, '\0');
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + (key.empty() ? "" : chunk("tRNS", key)) + chunk("IDAT", packed) +
         chunk("IEND", "");
}

std::vector<int> reds_of(const std::string& png) {
  const Image image = decode(png);
  std::vector<int> out;
  for (size_t i = 0; i < image.rgb.size(); i += 3) out.push_back(image.rgb[i]);
  return out;
}

// The expected pixels are what Pillow 13.0.0 makes of these very bytes, composited onto white.
TEST(DecodeImage, TransparentColoursAreThoseOfPillow) {
  const std::string bits = std::string(1, '\0') + '\xE4' + '\x1B';
  const auto grey = [&](char depth, uint32_t key) {
    return reds_of(hand_made_png(static_cast<uint32_t>(16 / depth), 1, depth, 0, bits, big_endian(key).substr(2)));
  };
  using Reds = std::vector<int>;
  EXPECT_EQ(grey(1, 0), Reds(16, 255));
  EXPECT_EQ(grey(1, 1), (Reds{255, 255, 255, 0, 0, 255, 0, 0, 0, 0, 0, 255, 255, 0, 255, 255}));
  EXPECT_EQ(grey(2, 0), (Reds{255, 170, 85, 255, 255, 85, 170, 255}));
  EXPECT_EQ(grey(2, 1), (Reds{255, 170, 85, 0, 0, 85, 170, 255}));
  EXPECT_EQ(grey(2, 85), (Reds{255, 170, 255, 0, 0, 255, 170, 255}));
  EXPECT_EQ(grey(4, 1), (Reds{238, 68, 17, 187}));
  EXPECT_EQ(grey(4, 17), (Reds{238, 68, 255, 187}));
  const std::string deep = std::string(1, '\0') + "\x12\x34\x12\x34\x12\x34\x12\x35\x12\x35\x12\x35";
  EXPECT_EQ(reds_of(hand_made_png(2, 1, 16, 2, deep, "\x12\x34\x12\x34\x12\x34")), (Reds{18, 18}));
  const std::string low("\0\x12\0\x12\0\x12", 6);
  EXPECT_EQ(reds_of(hand_made_png(2, 1, 16, 2, deep, low)), (Reds{255, 255}));
}

TEST(DecodeImage, SixteenBitGreyIsThatOfPillow) {
  const std::string rows("\0\0\0\0\x64\0\xFF\1\0\xFF\xFF", 11);  // 0, 100, 255, 256, 65535
  EXPECT_EQ(reds_of(hand_made_png(5, 1, 16, 0, rows)), (std::vector<int>{0, 100, 255, 255, 255}));
  EXPECT_EQ(reds_of(hand_made_png(5, 1, 16, 0, rows, std::string("\0\x64", 2))),
            (std::vector<int>{0, 255, 255, 255, 255}));
}

// A progressive JPEG of grey whose scans say "nothing here" in a few bytes each.
std::string progressive_jpeg(int side, int scans) {
  const auto segment = [](char marker, const std::string& body) {
    return std::string("\xff") + marker + big_endian(static_cast<uint32_t>(body.size() + 2)).substr(2) + body;
  };
  const auto zeros = [](size_t count) { return std::string(count, '\0'); };
  const std::string size = big_endian(static_cast<uint32_t>(side)).substr(2);
  const size_t blocks = static_cast<size_t>((side + 7) / 8) * static_cast<size_t>((side + 7) / 8);
  const std::string scan =
      segment('\xda', "\1\1" + zeros(1) + "\1\x3f\1") + zeros(((blocks / 16384 + 2) * 15 + 7) / 8 + 1);
  std::string out = "\xff\xd8" + segment('\xdb', zeros(1) + std::string(64, '\1')) +
                    segment('\xc2', "\x08" + size + size + "\1\1\x11" + zeros(1)) +
                    segment('\xc4', zeros(1) + "\1" + zeros(15) + zeros(1)) +
                    segment('\xc4', "\x10\1" + zeros(15) + "\xe0") +
                    segment('\xda', "\1\1" + zeros(1) + zeros(2) + "\1") + zeros((blocks + 7) / 8);
  for (int i = 0; i < scans; ++i) out += scan;
  return out + "\xff\xd9";
}

TEST(DecodeImage, ScansOfAJpegAreLimited) {
  EXPECT_EQ(decode(progressive_jpeg(64, 50)).width, 64);
  EXPECT_ERROR(decode(progressive_jpeg(64, 100)), "picture: JPEG of 101 scans, at most 100 are decoded at its size");
  EXPECT_ERROR(decode(progressive_jpeg(10000, 25)), "JPEG of 26 scans, at most 20 are decoded at its size");
}

TEST(DecodeImage, ANarrowPictureTakesNoMoreThanItsPixels) {
  // 10^8 rows whose data is missing: pointers to the rows alone would be 800 MB.
  EXPECT_ERROR(decode(hand_made_png(1, 100'000'000, 1, 0, std::string(10, '\0'))), "picture: ");
}

TEST(DecodeImage, SizesOfFilesAreCheckedBeforeReading) {
  TemporaryFolder folder;
  const std::filesystem::path sparse = folder.write("sparse.jpg", "\xff\xd8\xff");
  std::filesystem::resize_file(sparse, uintmax_t{40} << 30);
  EXPECT_ERROR(read_image(sparse), "sparse.jpg: 42949672960 bytes, at most 1073741824 are read");
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
  EXPECT_ERROR(decode(png), "picture: an image of 65500x65500 pixels, at most 100000000 are taken");
  std::string jpeg = bytes_of("420.jpg");
  jpeg.replace(jpeg.find("\xff\xc0") + 5, 4, "\xff\xdc\xff\xdc");
  EXPECT_ERROR(decode(jpeg), "picture: an image of 65500x65500 pixels");
  std::string webp = bytes_of("lossless.webp");
  webp.replace(21, 4, std::string("\xff\xff\xff\x0f", 4));  // 14 bits each
  EXPECT_ERROR(decode(webp), "picture: an image of 16384x16384 pixels");
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
