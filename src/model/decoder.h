// SPDX-License-Identifier: Apache-2.0
// The decoder of Llama, Mistral and Qwen2 as steps that the runtime strings together: prefill and decode differ only in
// where keys and values come from, and a policy acts between the steps. Differentiable (every op on this path is).
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

#include "model/config.h"
#include "model/weights.h"

namespace espalier {

// cos and sin of the rotary embedding, [n, d_h] in `dtype`, for position ids int64 [n], or [3, n] (time, height, width)
// with M-RoPE, where [n] stands for three equal parts. Angles are float32.
struct Rotary {
  at::Tensor cos, sin;
};
Rotary rotary(const DecoderConfig& config, const at::Tensor& position_id, at::ScalarType dtype);

// The angle a position turns by, float32 [d_h / 2] on the CPU; and the same embedding from frequencies that already lie
// where position_id does, which asks the host for nothing.
at::Tensor rotary_frequencies(const DecoderConfig& config);
Rotary rotary(const DecoderConfig& config, const at::Tensor& frequencies, const at::Tensor& position_id,
              at::ScalarType dtype);

at::Tensor embed_tokens(const DecoderWeights& weights, const at::Tensor& ids);  // int64 [n] -> [n, d]

struct QueryKeyValue {
  at::Tensor query;       // [n, h, d_h], rotated
  at::Tensor key, value;  // [n, g, d_h], key rotated
};
// Norm, projections and rotation of layer inputs x [n, d].
QueryKeyValue project_qkv(const DecoderConfig& config, const DecoderLayerWeights& layer, const at::Tensor& x,
                          const Rotary& rotary);

// x + o_proj(attended); attended [n, h, d_h].
at::Tensor add_attention(const DecoderLayerWeights& layer, const at::Tensor& x, const at::Tensor& attended);

// x + down(silu(gate) · up) of the second norm.
at::Tensor add_mlp(const DecoderConfig& config, const DecoderLayerWeights& layer, const at::Tensor& x);

at::Tensor final_norm(const DecoderConfig& config, const DecoderWeights& weights, const at::Tensor& x);
at::Tensor logits(const DecoderWeights& weights, const at::Tensor& normed);  // [n, d] -> [n, vocab]

double attention_scale(const DecoderConfig& config);

}  // namespace espalier
