// SPDX-License-Identifier: Apache-2.0
#include "runtime/pixels.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "espalier/error.h"

namespace espalier {

namespace {

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void check_shape(const at::Tensor& batch, at::IntArrayRef expected) {
  if (batch.scalar_type() != at::kFloat || batch.sizes() != expected)
    throw Error("pixel values: these pictures make float32 " + shape_text(expected) + ", got " +
                shape_text(batch.sizes()));
}

int64_t most_crops(const std::vector<ImagePlan>& plans) {
  int64_t most = 0;
  for (const ImagePlan& plan : plans) most = std::max(most, plan.pixel_shape[0]);
  return most;
}

}  // namespace

at::Tensor pixels_of(const LoadedModel& model, const ImagePlan& plan, const Image& image) {
  if (model.config.family == Family::kQwen25Vl) {
    PatchValues patches = preprocess(plan.processors->qwen_image_processor, image);
    return at::from_blob(patches.values.data(), plan.pixel_shape, at::kFloat).clone();
  }
  PixelValues pixels = preprocess(plan.processors->image_processor, image);
  if (!plan.processors->has_tiles) pixels.crops = 1;  // the full view is the first
  const std::vector<int64_t> shape = {pixels.crops, pixels.channels, pixels.height, pixels.width};
  if (shape != plan.pixel_shape)
    throw Error(model.folder.string() + "/preprocessor_config.json: a picture of " + std::to_string(image.width) +
                " x " + std::to_string(image.height) + " comes out as " + shape_text(shape) +
                ", but the vision tower takes " + shape_text(plan.pixel_shape));
  return at::from_blob(pixels.values.data(), shape, at::kFloat).clone();
}

at::Tensor pixels_in_batch(const ModelConfig& config, const std::vector<ImagePlan>& plans, const at::Tensor& batch,
                           size_t i) {
  const auto image = static_cast<int64_t>(i), images = std::ssize(plans);
  const std::vector<int64_t>& one = plans[i].pixel_shape;
  if (config.family == Family::kQwen25Vl) {
    int64_t begin = 0, patches = 0;
    for (size_t p = 0; p < plans.size(); ++p) {
      if (p == i) begin = patches;
      patches += plans[p].pixel_shape[0];
    }
    check_shape(batch, {patches, one[1]});
    return batch.slice(0, begin, begin + one[0]);
  }
  if (config.family == Family::kLlavaNext) {
    check_shape(batch, {images, most_crops(plans), one[1], one[2], one[3]});
    return batch[image].slice(0, 0, one[0]);
  }
  check_shape(batch, {images, one[1], one[2], one[3]});
  return batch.slice(0, image, image + 1);
}

at::Tensor batch_pixels(const ModelConfig& config, const std::vector<at::Tensor>& images) {
  if (config.family != Family::kLlavaNext) return at::cat(images);
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

}  // namespace espalier
