// SPDX-License-Identifier: Apache-2.0
#include "pictures/image_processor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "base/safetensors.h"
#include "pictures/image_transforms.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

const fs::path kData = test::golden_folder();

const std::map<std::string, TensorView>& golden() {
  static const SafetensorsFile file = SafetensorsFile::open(kData / "pixels" / "cases.safetensors");
  return file.tensors();
}

Image image_of(const TensorView& view) {  // [height, width, 3]
  const auto* data = reinterpret_cast<const uint8_t*>(view.bytes.data());
  return {static_cast<int>(view.shape.at(1)), static_cast<int>(view.shape.at(0)), {data, data + view.bytes.size()}};
}

std::vector<float> floats_of(const TensorView& view) {
  std::vector<float> out(view.bytes.size() / sizeof(float));
  std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
  return out;
}

Image pattern(int height, int width) {  // as in make_images.py
  Image image{width, height, {}};
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      for (int c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(3 * x + 5 * y + x * y % 97 + 80 * c));
    }
  }
  return image;
}

TEST(ResizeBicubic, EqualsPillow) {
  int cases = 0;
  for (;; ++cases) {
    const auto it = golden().find("resize." + std::to_string(cases) + ".image");
    if (it == golden().end()) break;
    const Image wanted = image_of(golden().at("resize." + std::to_string(cases) + ".resized"));
    const Image resized = resize_bicubic(image_of(it->second), wanted.width, wanted.height);
    EXPECT_EQ(resized.width, wanted.width);
    EXPECT_EQ(resized.height, wanted.height);
    EXPECT_EQ(resized.rgb, wanted.rgb) << "case " << cases;
  }
  EXPECT_EQ(cases, 12);
}

TEST(ResizeBicubic, WindowsOfLargePicturesEqualPillow) {
  const Window wide = center_window(11200, 56, 56, 56), tall = center_window(56, 11200, 56, 56);
  EXPECT_EQ(resize_bicubic(pattern(100, 20000), 11200, 56, wide).rgb, image_of(golden().at("large.0.window")).rgb);
  EXPECT_EQ(resize_bicubic(pattern(20000, 100), 56, 11200, tall).rgb, image_of(golden().at("large.1.window")).rgb);
}

TEST(ResizeBicubic, WindowIsAPartOfTheWhole) {
  const Image image = pattern(37, 53);
  for (const auto& [width, height] : {std::pair{91, 20}, {53, 20}, {91, 37}, {53, 37}, {10, 80}}) {
    const Window window{width / 3, height / 4, width / 2, height / 2};
    const Image whole = resize_bicubic(image, width, height);
    EXPECT_EQ(resize_bicubic(image, width, height, window).rgb, crop(whole, window).rgb) << width << "x" << height;
  }
}

TEST(CenterCrop, RoundsAsTransformers) {
  const auto offset = [](int side, int crop) { return center_window(side, side, crop, crop).left; };
  EXPECT_EQ(offset(10, 4), 3);
  EXPECT_EQ(offset(11, 4), 3);
  EXPECT_EQ(offset(10, 5), 2);
  EXPECT_EQ(offset(4, 4), 0);
  EXPECT_EQ(offset(4, 6), -1);
  EXPECT_EQ(offset(4, 7), -2);  // Python's -3 // 2
}

TEST(CenterCrop, IsBlackOutside) {
  const Image image{1, 2, {1, 2, 3, 4, 5, 6}};
  EXPECT_EQ(center_crop(image, 3, 1).rgb, (std::vector<uint8_t>{0, 0, 0, 1, 2, 3, 0, 0, 0}));
  EXPECT_EQ(crop(image, {5, 0, 1, 1}).rgb, (std::vector<uint8_t>{0, 0, 0}));
}

TEST(PadToSquare, KeepsThePictureInTheMiddle) {
  const Image wide{2, 1, {1, 1, 1, 2, 2, 2}};
  EXPECT_EQ(pad_to_square(wide, {7, 8, 9}).rgb, (std::vector<uint8_t>{1, 1, 1, 2, 2, 2, 7, 8, 9, 7, 8, 9}));
  const Image tall{1, 3, {1, 1, 1, 2, 2, 2, 3, 3, 3}};
  EXPECT_EQ(pad_to_square(tall, {7, 7, 7}).rgb, (std::vector<uint8_t>{7, 7, 7, 1, 1, 1, 7, 7, 7,  //
                                                                      7, 7, 7, 2, 2, 2, 7, 7, 7,  //
                                                                      7, 7, 7, 3, 3, 3, 7, 7, 7}));
}

TEST(Normalize, IsChannelsFirst) {
  std::vector<float> out = {-1.0f};
  normalize({2, 1, {0, 10, 20, 30, 40, 50}}, {0.5, {1, 2, 3}, {1, 2, 4}}, out);
  EXPECT_EQ(out, (std::vector<float>{-1.0f, -1, 14, 1.5, 9, 1.75, 5.5}));
}

class ImageProcessorTest : public ::testing::Test {
 protected:
  ImageProcessor load(const std::string& config) {
    folder_.write("preprocessor_config.json", config);
    return ImageProcessor::load(folder_.path());
  }
  std::string error(const std::string& fields) {
    return error_of([&] { load(R"({"image_processor_type": "CLIPImageProcessor")" + fields + "}"); });
  }
  TemporaryFolder folder_;
};

TEST_F(ImageProcessorTest, EqualsTransformers) {
  const nlohmann::json configs = read_json_file(kData / "pixels" / "configs.json");
  ASSERT_EQ(configs.size(), 27u);
  for (const auto& [name, config] : configs.items()) {
    SCOPED_TRACE(name);
    const TensorView& wanted = golden().at("processor." + name + ".pixel_values");
    const PixelValues pixels = preprocess(load(config.dump()), image_of(golden().at("processor." + name + ".image")));
    ASSERT_EQ((std::vector<int64_t>{pixels.crops, pixels.channels, pixels.height, pixels.width}), wanted.shape);
    EXPECT_EQ(pixels.values, floats_of(wanted));
  }
}

// The goldens of the model went through torchvision, whose resize differs by one grey level here and there.
TEST_F(ImageProcessorTest, IsWithinAGreyLevelOfTorchvision) {
  for (const std::string name :
       {"llava15/single", "llava15/small_square", "llava15/pair_raw", "llava15/icl4", "llava15/wide", "llava15/tall",
        "llava_next_mistral/single", "llava_next_mistral/icl4", "llava_next_mistral/wide", "llava_next_mistral/tall",
        "llava_next_vicuna/single", "llava_next_vicuna/icl2"}) {
    SCOPED_TRACE(name);
    const fs::path checkpoint = kData / name.substr(0, name.find('/')), cases = checkpoint / "cases";
    const std::string of = name.substr(name.find('/') + 1);
    const ImageProcessor processor = ImageProcessor::load(checkpoint);
    const auto file = SafetensorsFile::open(cases / (of + ".safetensors"));
    const TensorView& golden = file.tensors().at("pixel_values");
    const std::vector<float> wanted = floats_of(golden);
    std::vector<float> values;
    const nlohmann::json fields = read_json_file(cases / (of + ".json"));
    for (const auto& picture : fields.at("image_files")) {
      const PixelValues pixels = preprocess(processor, read_image(cases / picture.get<std::string>()));
      values.insert(values.end(), pixels.values.begin(), pixels.values.end());
      if (golden.shape.size() == 5)  // pictures of fewer tiles are filled up with zeros
        values.resize(values.size() + (golden.shape[1] - pixels.crops) * pixels.values.size() / pixels.crops);
    }
    ASSERT_EQ(values.size(), wanted.size());
    size_t different = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      const float difference = std::abs(values[i] - wanted[i]);
      ASSERT_LE(difference, 1.01f / 255 / 0.2613f) << "at " << i;
      different += difference > 1e-3f;
    }
    EXPECT_LE(static_cast<double>(different), 0.01 * static_cast<double>(values.size()));
  }
}

TEST_F(ImageProcessorTest, TakesNarrowPicturesWithoutMakingThemHuge) {
  const ImageProcessor processor = load(R"({"image_processor_type": "CLIPImageProcessor"})");
  for (const auto& [height, width] : {std::pair{1, 20000}, {20000, 1}, {100, 20000}, {20000, 100}, {1, 1}}) {
    const PixelValues pixels = preprocess(processor, pattern(height, width));
    EXPECT_EQ(pixels.values.size(), size_t{3 * 224 * 224});
  }
  EXPECT_ERROR(
      preprocess(load(R"({"image_processor_type": "CLIPImageProcessor", "do_center_crop": false})"), pattern(1, 20000)),
      "image of 20000x1 pixels becomes 4480000x224 in preprocessing");
}

TEST(SourceBoxTest, FollowsPadResizeAndCrop) {
  const auto box = [](const ImageProcessor& processor, int width, int height) {
    const PixelBox b = crop_boxes(processor, width, height).front();
    return std::vector<double>{b.x0, b.y0, b.x1, b.y1};
  };
  ImageProcessor processor;  // short side to 224, the middle 224 x 224
  EXPECT_EQ(box(processor, 448, 448), (std::vector<double>{0, 0, 448, 448}));
  EXPECT_EQ(box(processor, 112, 56), (std::vector<double>{28, 0, 84, 56}));
  EXPECT_EQ(box(processor, 56, 112), (std::vector<double>{0, 28, 56, 84}));
  processor.do_pad = true;
  EXPECT_EQ(box(processor, 112, 57), (std::vector<double>{0, -27, 112, 85}));
  processor.do_pad = false;
  processor.do_resize = false;
  EXPECT_EQ(box(processor, 225, 200), (std::vector<double>{0, -12, 224, 212}));
  processor.do_center_crop = false;
  EXPECT_EQ(box(processor, 225, 200), (std::vector<double>{0, 0, 225, 200}));
}

// A bright square on black: the bright pixel values must lie where crop_boxes says.
TEST(SourceBoxTest, AgreesWithThePixels) {
  ImageProcessor processor;
  processor.shortest_edge = 30;
  processor.crop_size = {20, 24};
  Image image{90, 60, std::vector<uint8_t>(size_t{3} * 90 * 60)};
  for (int y = 20; y < 40; ++y) std::fill_n(image.rgb.begin() + 3 * (y * 90 + 30), 3 * 10, uint8_t{255});
  const PixelValues pixels = preprocess(processor, image);
  const PixelBox box = crop_boxes(processor, 90, 60).front();
  for (int y = 0; y < pixels.height; ++y) {
    for (int x = 0; x < pixels.width; ++x) {
      const double source_x = box.x0 + (x + 0.5) * (box.x1 - box.x0) / pixels.width;
      const double source_y = box.y0 + (y + 0.5) * (box.y1 - box.y0) / pixels.height;
      const bool inside = source_x > 30 && source_x < 40 && source_y > 20 && source_y < 40;
      EXPECT_EQ(pixels.values[y * pixels.width + x] > 0, inside) << x << " " << y;
    }
  }
}

TEST_F(ImageProcessorTest, KnowsTheNamesOfItsClasses) {
  for (const char* name : {"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil",
                           "LlavaImageProcessor", "LlavaImageProcessorFast"}) {
    EXPECT_EQ(load(R"({"image_processor_type": ")" + std::string(name) + "\"}").shortest_edge, 224) << name;
  }
  EXPECT_EQ(load(R"({"feature_extractor_type": "CLIPFeatureExtractor", "size": 30})").shortest_edge, 30);
}

TEST_F(ImageProcessorTest, PrefersTheNestedConfigOfNewSaves) {
  folder_.write("processor_config.json",
                R"({"image_processor": {"image_processor_type": "CLIPImageProcessor", "size": 33}})");
  EXPECT_EQ(load(R"({"image_processor_type": "CLIPImageProcessor", "size": 30})").shortest_edge, 33);
  folder_.write("processor_config.json", R"({"patch_size": 14})");
  EXPECT_EQ(load(R"({"image_processor_type": "CLIPImageProcessor", "size": 30})").shortest_edge, 30);
}

TEST_F(ImageProcessorTest, RefusesWhatItCannotDo) {
  EXPECT_ERROR(ImageProcessor::load(folder_.path()), "preprocessor_config.json: no such file");
  EXPECT_ERROR(load("[]"), "preprocessor_config.json: expected an object");
  EXPECT_ERROR(load("{}"),
               "field \"image_processor_type\": expected CLIPImageProcessor, LlavaImageProcessor or "
               "LlavaNextImageProcessor, got nothing");
  EXPECT_ERROR(load(R"({"image_processor_type": "ViTImageProcessor"})"), "got \"ViTImageProcessor\"");
  const std::pair<const char*, const char*> cases[] = {
      {R"(, "resample": 2)", "field \"resample\": expected 3, bicubic (this is bilinear), got 2"},
      {R"(, "resample": 9)", "field \"resample\": expected 3, bicubic, got 9"},
      {R"(, "size": "large")", "field \"size\": expected an object, got \"large\""},
      {R"(, "size": 0)", "field \"size\": expected an integer from 1"},
      {R"(, "size": 1.5)", "field \"size\": expected an integer"},
      {R"(, "size": {"longest_edge": 3})", "field \"size.height\": expected an integer from 1 to 16384, got nothing"},
      {R"(, "size": {"shortest_edge": 3, "longest_edge": 5})", "field \"size\": expected shortest_edge alone"},
      {R"(, "size": {"shortest_edge": -3})", "field \"size.shortest_edge\""},
      {R"(, "crop_size": {"height": 3})", "field \"crop_size.width\""},
      {R"(, "crop_size": 99999999)", "field \"crop_size\""},
      {R"(, "do_resize": 1)", "field \"do_resize\": expected true or false, got 1"},
      {R"(, "do_pad": true)", "field \"do_pad\": expected false for CLIPImageProcessor"},
      {R"(, "image_mean": [0.5])", "field \"image_mean\": expected three numbers"},
      {R"(, "image_std": [1, 0, 1])", "field \"image_std\": expected numbers other than 0"},
      {R"(, "image_std": ["1", 0, 1])", "field \"image_std\": expected a list of numbers"},
      {R"(, "rescale_factor": "x")", "field \"rescale_factor\": expected a number"},
  };
  for (const auto& [fields, message] : cases) EXPECT_PRED_FORMAT2(::testing::IsSubstring, message, error(fields));
}

TEST_F(ImageProcessorTest, RefusesTilesThatCannotBe) {
  const auto error_with = [&](const std::string& fields) {
    return error_of([&] {
      load(R"({"image_processor_type": "LlavaNextImageProcessorFast", "crop_size": 20)" + fields +
           (fields.find("\"size\"") == std::string::npos ? R"(, "size": 20})" : "}"));
    });
  };
  const std::pair<const char*, const char*> cases[] = {
      {"", "field \"image_grid_pinpoints\": expected multiples of crop_size, 20, got nothing"},
      {R"(, "image_grid_pinpoints": [])", "field \"image_grid_pinpoints\": expected a list of pairs"},
      {R"(, "image_grid_pinpoints": 40)", "field \"image_grid_pinpoints\": expected a list of pairs"},
      {R"(, "image_grid_pinpoints": [[40, 50]])",
       "field \"image_grid_pinpoints\": expected multiples of crop_size, 20"},
      {R"(, "image_grid_pinpoints": [[40]])", "field \"image_grid_pinpoints\": expected pairs"},
      {R"(, "image_grid_pinpoints": [[40, 0]])", "field \"image_grid_pinpoints\": expected pairs"},
      {R"(, "image_grid_pinpoints": [[40, 20]], "size": 30)",
       "field \"crop_size\": expected a square as large as size"},
      {R"(, "image_grid_pinpoints": [[40, 20]], "resample": 2)", "field \"resample\""},
  };
  for (const auto& [fields, message] : cases) EXPECT_PRED_FORMAT2(::testing::IsSubstring, message, error_with(fields));
  EXPECT_EQ(load(R"({"image_processor_type": "LlavaNextImageProcessor", "size": 336, "crop_size": 336})")
                .grid_pinpoints.size(),
            5u);
}

TEST(CropBoxes, OfTiles) {  // 100 x 50 fills 40 x 20 of the 2 x 2 canvas: tiles are 50 pixels wide, 25 above and below
  ImageProcessor processor;
  processor.shortest_edge = 20;
  processor.crop_size = {20, 20};
  processor.grid_pinpoints = {{40, 40}};
  const std::vector<PixelBox> boxes = crop_boxes(processor, 100, 50);
  EXPECT_EQ(boxes, (std::vector<PixelBox>{
                       {0, 0, 100, 50}, {0, -25, 50, 25}, {50, -25, 100, 25}, {0, 25, 50, 75}, {50, 25, 100, 75}}));
}

}  // namespace
}  // namespace espalier
