// SPDX-License-Identifier: Apache-2.0
#include "pictures/qwen_image_processor.h"

#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "base/json_file.h"
#include "base/safetensors.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

const fs::path kData = test::golden_folder() / "qwen25vl";

const std::map<std::string, TensorView>& golden() {
  static const SafetensorsFile file = SafetensorsFile::open(kData / "pixels" / "cases.safetensors");
  return file.tensors();
}

template <typename T>
std::vector<T> values_of(const TensorView& view) {
  std::vector<T> out(view.bytes.size() / sizeof(T));
  std::memcpy(out.data(), view.bytes.data(), view.bytes.size());
  return out;
}

Image image_of(const TensorView& view) {  // [height, width, 3]
  return {static_cast<int>(view.shape.at(1)), static_cast<int>(view.shape.at(0)), values_of<uint8_t>(view)};
}

class QwenImageProcessorTest : public ::testing::Test {
 protected:
  QwenImageProcessor load(const std::string& config) {
    folder_.write("preprocessor_config.json", config);
    return QwenImageProcessor::load(folder_.path());
  }
  QwenImageProcessor with(const std::string& fields) {
    return load(R"({"image_processor_type": "Qwen2VLImageProcessor")" + fields + "}");
  }
  TemporaryFolder folder_;
};

TEST_F(QwenImageProcessorTest, EqualsTransformers) {
  const nlohmann::json configs = read_json_file(kData / "pixels" / "configs.json");
  ASSERT_EQ(configs.size(), 15u);
  for (const auto& [name, config] : configs.items()) {
    SCOPED_TRACE(name);
    const PatchValues patches = preprocess(load(config.dump()), image_of(golden().at(name + ".image")));
    const TensorView& wanted = golden().at(name + ".pixel_values");
    EXPECT_EQ((std::vector<int64_t>{1, patches.grid.rows, patches.grid.cols}),
              values_of<int64_t>(golden().at(name + ".grid")));
    EXPECT_EQ((std::vector<int64_t>{patches.grid.rows * patches.grid.cols, patches.width}), wanted.shape);
    EXPECT_EQ(patches.values, values_of<float>(wanted));  // every bit
  }
}

TEST_F(QwenImageProcessorTest, GridsEqualSmartResize) {
  const std::vector<int64_t> table = values_of<int64_t>(golden().at("resized"));
  ASSERT_GT(table.size(), 6u * 1000);
  QwenImageProcessor processor;
  for (size_t row = 0; row < table.size(); row += 6) {
    const auto at = [&](size_t i) { return static_cast<int>(table[row + i]); };
    processor.min_pixels = at(2);
    processor.max_pixels = at(3);
    const PatchGrid grid = patch_grid(processor, at(1), at(0));
    EXPECT_EQ(grid.rows * 14, at(4)) << at(0) << " x " << at(1);
    EXPECT_EQ(grid.cols * 14, at(5)) << at(0) << " x " << at(1);
  }
}

TEST_F(QwenImageProcessorTest, RefusesPicturesTooNarrow) {
  const QwenImageProcessor processor;
  EXPECT_NO_THROW(patch_grid(processor, 2000, 10));
  EXPECT_NO_THROW(patch_grid(processor, 1, 200));
  EXPECT_ERROR(patch_grid(processor, 2001, 10), "image of 2001x10 pixels: its sides differ more than 200 : 1");
  EXPECT_ERROR(patch_grid(processor, 1, 201), "image of 1x201 pixels: its sides differ more than 200 : 1");
}

TEST_F(QwenImageProcessorTest, KnowsTheNamesAndPlacesOfItsConfig) {
  for (const char* name : {"Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"}) {
    const QwenImageProcessor defaults = load(R"({"image_processor_type": ")" + std::string(name) + "\"}");
    EXPECT_EQ(defaults.min_pixels, 3136);
    EXPECT_EQ(defaults.max_pixels, 1003520);
  }
  folder_.write("processor_config.json",
                R"({"image_processor": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 16}})");
  EXPECT_EQ(with(", \"patch_size\": 12").patch_size, 16);
}

TEST_F(QwenImageProcessorTest, RefusesWhatItCannotDo) {
  EXPECT_ERROR(load("{}"), "field \"image_processor_type\": expected Qwen2VLImageProcessor, got nothing");
  EXPECT_ERROR(load(R"({"image_processor_type": "CLIPImageProcessor"})"), "got \"CLIPImageProcessor\"");
  const std::pair<const char*, const char*> cases[] = {
      {R"(, "resample": 2)", "field \"resample\": expected 3, bicubic (this is bilinear), got 2"},
      {R"(, "size": 5)", "field \"size\": expected an object, got 5"},
      {R"(, "size": {"height": 5, "width": 5})", "field \"size.shortest_edge\": expected an integer from 1"},
      {R"(, "min_pixels": 0)", "field \"min_pixels\": expected an integer from 1"},
      {R"(, "min_pixels": 5000, "max_pixels": 4000)", "pixels of a picture: 5000 at least, but 4000 at most"},
      {R"(, "patch_size": -1)", "field \"patch_size\": expected an integer from 1 to 1024, got -1"},
      {R"(, "merge_size": "2")", "field \"merge_size\": expected an integer, got \"2\""},
      {R"(, "temporal_patch_size": 2000)", "field \"temporal_patch_size\""},
      {R"(, "image_std": [1, 0, 1])", "field \"image_std\": expected numbers other than 0"},
  };
  for (const auto& [fields, message] : cases) EXPECT_ERROR(with(fields), message);
  EXPECT_ERROR(patch_grid(with(R"(, "do_resize": false)"), 28, 29), "its sides are not multiples of 28");
}

}  // namespace
}  // namespace espalier
