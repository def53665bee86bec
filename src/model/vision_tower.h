// SPDX-License-Identifier: Apache-2.0
// CLIP vision transformer and the projector behind it: pixels to image tokens. Crops are independent of each other.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "model/config.h"
#include "model/weights.h"

namespace espalier {

// What one vision layer computed, for class-attention probes and recordings. p1 = patches + 1 (the class token is row 0
// of each crop).
struct VisionLayerTrace {
  int layer = 0;
  at::Tensor query, key;  // [crops·p1, h, d_h]
  at::Tensor lse;         // float32 [h, crops·p1]
  at::Tensor output;      // [crops, p1, d]
};
using VisionObserver = std::function<void(const VisionLayerTrace&)>;

struct VisionFeatures {
  at::Tensor patches;  // [crops, p, d·feature layers] what the projector reads (class row first if the config keeps it)
  at::Tensor classes;  // [crops, d·feature layers] the class rows that go with them
};

// pixels float32 [crops, 3, s, s]. Runs layers 0 … num_layers - 1 (at least as many as the features need); `observe`
// sees each.
VisionFeatures run_vision_tower(const ModelConfig& config, const VisionWeights& weights, const at::Tensor& pixels,
                                int num_layers, const VisionObserver& observe = {});

// features [..., d_v] -> image tokens [..., d].
at::Tensor project(const ModelConfig& config, const ProjectorWeights& weights, const at::Tensor& features);

}  // namespace espalier
