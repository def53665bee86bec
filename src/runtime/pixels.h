// SPDX-License-Identifier: Apache-2.0
// Pixel values: from the pictures themselves, from prepared ones in the form in which Transformers' processors batch
// them, and back into that form. How many there are for a picture is the image plan's to say.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "espalier/image.h"
#include "runtime/image_plan.h"
#include "runtime/loaded_model.h"

namespace espalier {

// float32 of the plan's pixel_shape.
at::Tensor pixels_of(const LoadedModel& model, const ImagePlan& plan, const Image& image);

// Image i of a batch: LLaVA [images, 3, s, s]; LLaVA-NeXT [images, most crops, 3, s, s] with zeros behind pictures of
// fewer; Qwen2.5-VL [patches of all images, values]. Throws Error when the batch is not of these pictures.
at::Tensor pixels_in_batch(const ModelConfig& config, const std::vector<ImagePlan>& plans, const at::Tensor& batch,
                           size_t i);
at::Tensor batch_pixels(const ModelConfig& config, const std::vector<at::Tensor>& images);

}  // namespace espalier
