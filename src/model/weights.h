// SPDX-License-Identifier: Apache-2.0
// The decoder's tensors by name. Shapes are PyTorch's: [out, in] for linear layers. All in the compute dtype on the
// compute device.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"
#include "model/layers.h"

namespace espalier {

// One scale an output where the weight of that name is int8; undefined where it is not.
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

DecoderWeights bind_decoder(const DecoderConfig& config, const WeightSource& source);

// Replaces the decoder's linear layers and its head by int8 weights with a scale an output: scale = max |w| / 127 of
// the row, w = round(w / scale). The largest error of a weight is half a scale, 1/254 of the row's largest weight.
// Norms, biases and embeddings stay, and so does everything before the decoder.
void quantise_to_int8(DecoderWeights& weights);

}  // namespace espalier
