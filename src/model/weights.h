// SPDX-License-Identifier: Apache-2.0
// The model's tensors by name. Shapes are PyTorch's: [out, in] for linear layers. All in the compute dtype on the
// compute device.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "model/config.h"

namespace espalier {

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], or undefined
};

struct LayerNorm {
  at::Tensor weight, bias;  // [d]
};

struct VisionLayerWeights {
  LayerNorm norm1, norm2;
  Linear q, k, v, out;  // [d, d]
  Linear fc1, fc2;
};

struct VisionWeights {
  at::Tensor class_embedding;     // [d]
  at::Tensor patch_embedding;     // [d, 3, p, p]
  at::Tensor position_embedding;  // [1 + patches, d]
  LayerNorm pre_norm;
  std::vector<VisionLayerWeights> layers;  // as many as the checkpoint has; the features need all but the last
};

struct QwenVisionLayerWeights {
  at::Tensor norm1, norm2;  // [d]
  Linear qkv, out;          // [3·d, d], [d, d]
  Linear gate, up, down;
};

struct QwenVisionWeights {
  at::Tensor patch_embedding;  // [d, 3·t·p·p]
  std::vector<QwenVisionLayerWeights> layers;
  at::Tensor merger_norm;  // [d]; the merger's MLP is the projector
};

struct ProjectorWeights {
  Linear linear1, linear2;
};

// One scale per output where the weight of that name is int8; undefined where it is not.
struct Int8Scales {
  at::Tensor q, k, v, o, gate, up, down;
};

struct DecoderLayerWeights {
  at::Tensor norm1, norm2;                           // [d]
  at::Tensor q, k, v, o;                             // [h·d_h, d], [g·d_h, d] twice, [d, h·d_h]
  at::Tensor gate, up, down;                         // [f, d] twice, [d, f]
  at::Tensor q_bias = {}, k_bias = {}, v_bias = {};  // [h·d_h], [g·d_h] twice; undefined where there are none
  Int8Scales scales = {};
};

struct DecoderWeights {
  at::Tensor embed_tokens;  // [vocab, d]
  std::vector<DecoderLayerWeights> layers;
  at::Tensor norm;  // [d]
  at::Tensor head;  // [vocab, d]; the same tensor as embed_tokens when tied
  at::Tensor head_scale = {};
};

struct ModelWeights {
  VisionWeights vision;           // of LLaVA's families,
  QwenVisionWeights qwen_vision;  // or Qwen2.5-VL's; the other is empty
  ProjectorWeights projector;
  at::Tensor image_newline;  // [d] of each row break; LLaVA-NeXT
  DecoderWeights decoder;
};

// Gives the tensor of a canonical name (src/model/checkpoint.h), or throws Error when it is missing or has another
// shape.
using WeightSource = std::function<at::Tensor(const std::string& name, at::IntArrayRef shape)>;

ModelWeights bind_weights(const ModelConfig& config, const WeightSource& source);

// Replaces the decoder's linear layers and its head by int8 weights with one scale per output: scale = max |w| / 127 of
// the row, w = round(w / scale). The largest error of a weight is half a scale, 1/254 of the row's largest weight.
// Norms, biases and embeddings stay, and so does everything before the decoder.
void quantise_to_int8(DecoderWeights& weights);

// Every tensor that a checkpoint of this config holds, with its shape, in file order: for writing one.
struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<NamedShape> weight_names(const ModelConfig& config);

}  // namespace espalier
