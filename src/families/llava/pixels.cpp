// SPDX-License-Identifier: Apache-2.0
#include "families/llava/pixels.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/StringUtil.h>

#include "espalier/error.h"
#include "families/pixel_batch.h"

namespace espalier {

CropProcessor load_crop_processor(const std::filesystem::path& folder, const ClipConfig& tower) {
  CropProcessor loaded{ImageProcessor::load(folder), tower.grid(), tower.patch_size, folder};
  if (!loaded.processor.grid_pinpoints.empty())
    throw Error(folder.string() +
                "/preprocessor_config.json: LlavaNextImageProcessor, but config.json is of a model without tiles");
  return loaded;
}

CropProcessor resized(const CropProcessor& own, const ImageShape& shape) {
  if (shape.grid.rows != shape.grid.cols)
    throw Error("a policy wants a grid of " + std::to_string(shape.grid.rows) + " x " +
                std::to_string(shape.grid.cols) + ", but this model's crops are squares");
  CropProcessor other = own;
  other.grid = shape.grid.rows;
  const auto scaled = [&](int pixels) { return static_cast<int>((pixels * other.grid + own.grid / 2) / own.grid); };
  ImageProcessor& p = other.processor;
  if (p.shortest_edge) p.shortest_edge = scaled(*p.shortest_edge);
  p.size = {scaled(p.size.height), scaled(p.size.width)};
  p.crop_size = {scaled(p.crop_size.height), scaled(p.crop_size.width)};
  return other;
}

ImagePlan plan_crop(const CropProcessor& processor, int width, int height) {
  ImagePlan plan;
  plan.shape.grid = {processor.grid, processor.grid};
  plan.shape.crop_boxes = crop_boxes(processor.processor, width, height);
  plan.shape.crop_boxes.resize(1);
  plan.pixel_shape = {1, 3, processor.side(), processor.side()};
  plan.add_patches(0, plan.shape.grid);
  plan.set_tower_rows(1);
  return plan;
}

at::Tensor crop_pixels(const CropProcessor& processor, const ImagePlan& plan, const Image& image) {
  PixelValues pixels = preprocess(processor.processor, image);
  if (!plan.shape.tiling) pixels.crops = 1;  // of an any-resolution picture the full view, which is the first
  const std::vector<int64_t> shape = {pixels.crops, pixels.channels, pixels.height, pixels.width};
  if (shape != plan.pixel_shape)
    throw Error(c10::str(processor.folder.string(), "/preprocessor_config.json: a picture of ", image.width, " x ",
                         image.height, " comes out as ", at::IntArrayRef(shape), ", but the vision tower takes ",
                         at::IntArrayRef(plan.pixel_shape)));
  return at::from_blob(pixels.values.data(), shape, at::kFloat).clone();
}

at::Tensor batch_crops(const std::vector<at::Tensor>& images) {
  return at::cat(images);
}

at::Tensor crop_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i) {
  const std::vector<int64_t>& one = plans[i].pixel_shape;
  check_pixel_batch(batch, {std::ssize(plans), one[1], one[2], one[3]});
  const auto image = static_cast<int64_t>(i);
  return batch.slice(0, image, image + 1);
}

}  // namespace espalier
