// SPDX-License-Identifier: Apache-2.0
// Any-resolution pictures: a full view, and tiles of a canvas that are stitched again before the decoder.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <vector>

#include "families/llava/pixels.h"
#include "families/llava_next/config.h"

namespace espalier {

// Throws Error unless preprocessor_config.json cuts the canvases that config.json names: pictures are cut by the one
// file and put together by the other.
CropProcessor load_tile_processor(const std::filesystem::path& folder, const LlavaNextConfig& config);

// Crops of another side, and the canvas of the shape's tiling alone.
CropProcessor resized_tiles(const CropProcessor& own, const ImageShape& shape);

// The full view, then the stitched tiles row by row, without what un-padding cuts away; behind each of their rows
// stands a row break.
ImagePlan plan_tiles(const CropProcessor& processor, int width, int height);

// [images, most crops, 3, s, s] with zeros behind pictures of fewer.
at::Tensor batch_tiles(const std::vector<at::Tensor>& images);
at::Tensor tiles_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i);

}  // namespace espalier
