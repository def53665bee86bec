// SPDX-License-Identifier: Apache-2.0
// Square crops for a CLIP tower: how a picture's processor goes with the tower, the plan of a picture that is one crop,
// and its pixels. LLaVA-NeXT adds tiles (families/llava_next/pixels.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "espalier/image.h"
#include "families/image_plan.h"
#include "model/clip_tower.h"
#include "pictures/image_processor.h"

namespace espalier {

// The checkpoint's own, or one that makes smaller or larger crops.
struct CropProcessor {
  ImageProcessor processor;
  int64_t grid = 0;  // patches along a side of a crop
  int64_t patch_size = 0;
  std::filesystem::path folder = {};  // for messages

  int64_t side() const { return grid * patch_size; }
};

// Throws Error when preprocessor_config.json makes tiles.
CropProcessor load_crop_processor(const std::filesystem::path& folder, const ClipConfig& tower);

// Crops of another side, everything else in proportion. Throws Error when the shape's crops are no squares.
CropProcessor resized(const CropProcessor& own, const ImageShape& shape);

// The picture as one crop: of an any-resolution processor the full view.
ImagePlan plan_crop(const CropProcessor& processor, int width, int height);

// float32 of plan.pixel_shape, [crops, 3, s, s]. Throws Error when the processor's settings make something else.
at::Tensor crop_pixels(const CropProcessor& processor, const ImagePlan& plan, const Image& image);

// One crop per picture: [images, 3, s, s].
at::Tensor batch_crops(const std::vector<at::Tensor>& images);
at::Tensor crop_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i);

}  // namespace espalier
