// SPDX-License-Identifier: Apache-2.0
// LLaVA's CLIP tower and projector, shared with LLaVA-NeXT.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

#include "families/llava/config.h"
#include "model/clip_tower.h"
#include "model/projector.h"

namespace espalier {

struct LlavaTower {
  ClipWeights vision;
  ProjectorWeights projector;
};

// Throws Error when config.json asks for features that the tower below does not give.
void check_feature_selection(const LlavaConfig& config, const std::filesystem::path& folder);

LlavaTower bind_llava_tower(const LlavaConfig& config, const WeightSource& source);

// pixels float32 [crops, 3, s, s] -> patches [crops, p, d_v], classes [crops, d_v].
VisionFeatures run_tower(const LlavaConfig& config, const ClipWeights& weights, const at::Tensor& pixels,
                         int num_layers, const VisionObserver& observe = {});

// features [..., d_v] -> image tokens [..., d].
at::Tensor project(const LlavaConfig& config, const ProjectorWeights& weights, const at::Tensor& features);

}  // namespace espalier
