// SPDX-License-Identifier: Apache-2.0
// Pictures in their own proportions, a token for each cell of merged patches.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <vector>

#include "espalier/image.h"
#include "families/image_plan.h"
#include "model/patch_vit.h"
#include "pictures/qwen_image_processor.h"

namespace espalier {

// Throws Error unless preprocessor_config.json cuts the patches that the tower of config.json takes.
QwenImageProcessor load_patch_processor(const std::filesystem::path& folder, const PatchVitConfig& tower);

// The same with at most as many tokens as the shape has.
QwenImageProcessor limited_to(const QwenImageProcessor& own, const ImageShape& shape);

ImagePlan plan_patches(const QwenImageProcessor& processor, int width, int height);

// float32 [patches, 3·t·p·p] of the plan's grid.
at::Tensor patch_pixels(const QwenImageProcessor& processor, const ImagePlan& plan, const Image& image);

// Patches of all images behind each other, [patches, values].
at::Tensor batch_patches(const std::vector<at::Tensor>& images);
at::Tensor patches_in_batch(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i);

}  // namespace espalier
