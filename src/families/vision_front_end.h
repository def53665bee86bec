// SPDX-License-Identifier: Apache-2.0
// The way from pictures to the decoder's input, as functions over settings and weights that only the model's family
// knows (a folder beside this file).
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "espalier/image.h"
#include "espalier/token_layout.h"
#include "families/image_plan.h"
#include "families/positions.h"
#include "model/vision.h"

namespace espalier {

// All functions are const and may be called from several threads. A picture's plan goes through all of them: what one
// function makes by a plan, the next takes with the same plan.
struct VisionFrontEnd {
  // What a width x height picture becomes, as the checkpoint shows it to the model or in about the `wanted` shape.
  // Throws Error where the model cannot be shown such a picture.
  std::function<ImagePlan(int width, int height)> plan;
  std::function<ImagePlan(int width, int height, const ImageShape& wanted)> plan_as;

  // The picture in float32 of plan.pixel_shape.
  std::function<at::Tensor(const ImagePlan& plan, const Image& image)> pixels;
  // Pixels of several pictures in the one tensor that Transformers' processors make of them, and picture i of such a
  // tensor; throws Error when it is not of these pictures.
  std::function<at::Tensor(const std::vector<at::Tensor>& images)> batch_pixels;
  std::function<at::Tensor(const std::vector<ImagePlan>& plans, const at::Tensor& batch, size_t i)> pixels_in_batch;

  // Pixels of one picture, on the device -> patches [..., d_v], a row for each of the plan's tower rows, and the class
  // rows of its crops where the tower has them. Runs at least the first num_layers layers; `observe` sees each.
  std::function<VisionFeatures(const ImagePlan& plan, const at::Tensor& pixels, int num_layers,
                               const VisionObserver& observe)>
      tower;

  // Features [m, d_v] of the patches in `layout`, in its order -> the vectors [i, d] of all its image tokens, row
  // breaks among them, as they enter the decoder.
  std::function<at::Tensor(const at::Tensor& features, const TokenLayout& layout)> project;

  std::function<PromptPositions(const PromptLayout& layout)> positions;
};

}  // namespace espalier
