// SPDX-License-Identifier: Apache-2.0
// CLIP's vision transformer: pixels to the features of their patches. Crops are independent of each other.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "model/layers.h"
#include "model/vision.h"

namespace espalier {

struct ClipConfig {
  int64_t hidden_size = 768;
  int64_t intermediate_size = 3072;
  int num_layers = 12;
  int num_heads = 12;
  int64_t image_size = 224;  // side of a crop in pixels
  int64_t patch_size = 32;
  int64_t channels = 3;
  Activation activation = Activation::kQuickGelu;
  double layer_norm_eps = 1e-5;

  int64_t grid() const { return image_size / patch_size; }
  int64_t num_patches() const { return grid() * grid(); }
  int64_t head_dim() const { return hidden_size / num_heads; }
};

struct ClipLayerWeights {
  LayerNorm norm1, norm2;
  Linear q, k, v, out;  // [d, d]
  Linear fc1, fc2;
};

struct ClipWeights {
  at::Tensor class_embedding;     // [d]
  at::Tensor patch_embedding;     // [d, 3, p, p]
  at::Tensor position_embedding;  // [1 + patches, d]
  LayerNorm pre_norm;
  std::vector<ClipLayerWeights> layers;  // as many as the checkpoint has; features may need fewer
};

ClipWeights bind_clip(const ClipConfig& config, const WeightSource& source);

// pixels float32 [crops, 3, s, s], of the tower's own side or another. Runs layers 0 … num_layers - 1; `observe` sees
// each. `states`: which hidden states are the features (0 is the input of layer 0, i the output of layer i - 1), at
// most num_layers; several stand behind each other: patches [crops, p, d·states], classes [crops, d·states].
VisionFeatures run_clip(const ClipConfig& config, const ClipWeights& weights, const at::Tensor& pixels,
                        std::span<const int> states, int num_layers, const VisionObserver& observe = {});

}  // namespace espalier
