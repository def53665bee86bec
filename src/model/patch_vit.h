// SPDX-License-Identifier: Apache-2.0
// The vision transformer of the Qwen-VL families: the patches of one picture, of any size, to what the projector (the
// merger's MLP) reads for each image token. Pictures never see each other. The families differ in data: norms, MLPs,
// and whether attention runs inside windows.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/layers.h"
#include "model/vision.h"

namespace espalier {

struct PatchVitConfig {
  enum class Norm : uint8_t { kLayer, kRms };
  enum class Mlp : uint8_t { kPlain, kGated };  // down(act(up(x))), down(silu(gate(x)) · up(x))
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int num_layers = 0;
  int num_heads = 0;
  int64_t channels = 3;
  int64_t patch_size = 14;
  int64_t temporal_patch_size = 2;
  int64_t merge_size = 2;  // a cell of merge_size x merge_size patches is one image token
  Norm norm = Norm::kLayer;
  Mlp mlp = Mlp::kPlain;
  Activation activation = Activation::kQuickGelu;  // of a plain MLP
  int64_t window_size = 0;                         // side of an attention window in pixels; 0: no windows
  std::vector<int> full_attention_layers = {};     // which see the whole picture in spite of windows

  int64_t head_dim() const { return hidden_size / num_heads; }
  int64_t patches_per_token() const { return merge_size * merge_size; }
};

struct PatchVitLayerWeights {
  LayerNorm norm1, norm2;  // without biases where they are RMS norms
  Linear qkv, out;         // [3·d, d], [d, d]
  Linear gate;             // of a gated MLP
  Linear up, down;
};

struct PatchVitWeights {
  at::Tensor patch_embedding;  // [d, 3·t·p·p]
  std::vector<PatchVitLayerWeights> layers;
  LayerNorm merger_norm;  // the merger's MLP is the projector
};

PatchVitWeights bind_patch_vit(const PatchVitConfig& config, const WeightSource& source);

// patches float32 [rows·cols, 3·t·p·p] in the processor's order: cells row by row, inside a cell its patches row by
// row. rows and cols count patches.
// -> [cells, merge_size²·d]: each cell's normed patches behind each other, cells row by row.
// `observe` sees every layer with tokens in the order of `patches`, as one crop without a class token.
at::Tensor run_patch_vit(const PatchVitConfig& config, const PatchVitWeights& weights, const at::Tensor& patches,
                         int64_t rows, int64_t cols, const VisionObserver& observe = {});

}  // namespace espalier
