// SPDX-License-Identifier: Apache-2.0
#include "families/llava_next/pixels.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "espalier/error.h"
#include "families/pixel_batch.h"

namespace espalier {

namespace {

// Whole part of a non-negative x rounded to seven decimals, as Python's int(round(x, 7)).
int64_t whole_part_of_rounded(double x) {
  std::array<char, 512> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), x, std::chars_format::fixed, 7).ptr;
  int64_t whole = 0;
  std::from_chars(digits.data(), end, whole);  // up to the point
  return whole;
}

// Rows and columns of the stitched tiles that un-padding leaves: what black borders fill, it cuts off at both ends.
struct Uncut {
  int64_t first_row, last_row, first_col, last_col;
};

Uncut unpadded(GridSize stitched, int width, int height) {
  const auto rows = static_cast<double>(stitched.rows), cols = static_cast<double>(stitched.cols);
  Uncut left{0, stitched.rows, 0, stitched.cols};
  if (static_cast<double>(width) / height > cols / rows) {
    const int64_t padding = (stitched.rows - whole_part_of_rounded(height * (cols / width))) / 2;
    left.first_row = padding;
    left.last_row -= padding;
  } else {
    const int64_t padding = (stitched.cols - whole_part_of_rounded(width * (rows / height))) / 2;
    left.first_col = padding;
    left.last_col -= padding;
  }
  return left;
}

}  // namespace

CropProcessor load_tile_processor(const std::filesystem::path& folder, const LlavaNextConfig& config) {
  const ClipConfig& tower = config.llava.vision;
  CropProcessor loaded{ImageProcessor::load(folder), tower.grid(), tower.patch_size, folder};
  std::vector<ImageProcessor::Size> expected;
  for (const auto& [height, width] : config.grid_pinpoints)
    expected.push_back({static_cast<int>(height), static_cast<int>(width)});
  const std::vector<ImageProcessor::Size>& cut = loaded.processor.grid_pinpoints;
  if (cut == expected) return loaded;
  throw Error(folder.string() + "/preprocessor_config.json: " +
              (cut.empty() ? "LlavaNextImageProcessor was expected, as config.json is of llava_next"
                           : "image_grid_pinpoints are not those of config.json"));
}

CropProcessor resized_tiles(const CropProcessor& own, const ImageShape& shape) {
  CropProcessor other = resized(own, shape);
  const GridSize tiles = shape.tiling.value_or(GridSize{1, 1});
  const ImageProcessor::Size crop = other.processor.crop_size;
  other.processor.grid_pinpoints = {
      {static_cast<int>(tiles.rows) * crop.height, static_cast<int>(tiles.cols) * crop.width}};
  return other;
}

ImagePlan plan_tiles(const CropProcessor& processor, int width, int height) {
  const Tiling tiling = tiling_of(processor.processor, width, height);
  const int64_t n = processor.grid;
  const int64_t crops = 1 + int64_t{tiling.rows} * tiling.cols;
  ImagePlan plan;
  plan.shape = {.grid = {n, n},
                .tiling = GridSize{tiling.rows, tiling.cols},
                .crop_boxes = crop_boxes(processor.processor, width, height)};
  plan.pixel_shape = {crops, 3, processor.side(), processor.side()};
  plan.add_patches(0, {n, n});
  const Uncut left = unpadded({tiling.rows * n, tiling.cols * n}, width, height);
  for (int64_t row = left.first_row; row < left.last_row; ++row) {
    for (int64_t tile = 0; tile < tiling.cols; ++tile) {
      const int64_t first = std::clamp(left.first_col - tile * n, int64_t{0}, n),
                    last = std::clamp(left.last_col - tile * n, int64_t{0}, n);
      plan.add_patches(static_cast<int>(1 + row / n * tiling.cols + tile), {1, last - first}, {row % n, first});
    }
    plan.add_row_break();
  }
  plan.set_tower_rows(crops);
  return plan;
}

at::Tensor batch_tiles(const std::vector<at::Tensor>& images) {
  int64_t most = 0;
  for (const at::Tensor& image : images) most = std::max(most, image.size(0));
  std::vector<at::Tensor> filled;
  for (const at::Tensor& image : images) {
    std::vector<int64_t> missing = image.sizes().vec();
    missing[0] = most - missing[0];
    filled.push_back(at::cat({image, at::zeros(missing, image.options())}));
  }
  return at::stack(filled);
}

at::Tensor tiles_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i) {
  const std::vector<int64_t>& one = plans[i].pixel_shape;
  int64_t most = 0;
  for (const ImagePlan& plan : plans) most = std::max(most, plan.pixel_shape[0]);
  check_pixel_batch(batch, {std::ssize(plans), most, one[1], one[2], one[3]});
  return batch[static_cast<int64_t>(i)].slice(0, 0, one[0]);
}

}  // namespace espalier
