// SPDX-License-Identifier: Apache-2.0
#include "families/qwen_vl/pixels.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "families/pixel_batch.h"

namespace espalier {

QwenImageProcessor load_patch_processor(const std::filesystem::path& folder, const PatchVitConfig& tower) {
  QwenImageProcessor loaded = QwenImageProcessor::load(folder);
  const auto check = [&](const char* field, int64_t of_processor, int64_t of_tower) {
    if (of_processor != of_tower)
      throw Error(folder.string() + "/preprocessor_config.json: " + field + ": " + std::to_string(of_processor) +
                  ", but the vision tower of config.json has " + std::to_string(of_tower));
  };
  check("patch_size", loaded.patch_size, tower.patch_size);
  check("temporal_patch_size", loaded.temporal_patch_size, tower.temporal_patch_size);
  check("merge_size", loaded.merge_size, tower.merge_size);
  return loaded;
}

QwenImageProcessor limited_to(const QwenImageProcessor& own, const ImageShape& shape) {
  QwenImageProcessor limited = own;
  const int64_t side = int64_t{own.patch_size} * own.merge_size;
  limited.max_pixels = shape.grid.rows * shape.grid.cols * side * side;
  limited.min_pixels = std::min(own.min_pixels, limited.max_pixels);
  return limited;
}

ImagePlan plan_patches(const QwenImageProcessor& processor, int width, int height) {
  const auto [rows, cols] = patch_grid(processor, width, height);
  ImagePlan plan;
  plan.shape.grid = {rows / processor.merge_size, cols / processor.merge_size};
  plan.shape.crop_boxes = {{0, 0, static_cast<double>(width), static_cast<double>(height)}};
  plan.pixel_shape = {int64_t{rows} * cols,
                      int64_t{3} * processor.temporal_patch_size * processor.patch_size * processor.patch_size};
  plan.add_patches(0, plan.shape.grid);
  plan.set_tower_rows(1);
  return plan;
}

at::Tensor patch_pixels(const QwenImageProcessor& processor, const ImagePlan& plan, const Image& image) {
  const GridSize cells = plan.shape.grid;
  const PatchGrid grid = {static_cast<int>(cells.rows) * processor.merge_size,
                          static_cast<int>(cells.cols) * processor.merge_size};
  PatchValues patches = preprocess(processor, image, grid);
  return at::from_blob(patches.values.data(), plan.pixel_shape, at::kFloat).clone();
}

at::Tensor batch_patches(const std::vector<at::Tensor>& images) {
  return at::cat(images);
}

at::Tensor patches_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i) {
  int64_t begin = 0, patches = 0;
  for (size_t p = 0; p < plans.size(); ++p) {
    if (p == i) begin = patches;
    patches += plans[p].pixel_shape[0];
  }
  check_pixel_batch(batch, {patches, plans[i].pixel_shape[1]});
  return batch.slice(0, begin, begin + plans[i].pixel_shape[0]);
}

}  // namespace espalier
