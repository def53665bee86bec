// SPDX-License-Identifier: Apache-2.0
#include "model/weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <string>

namespace espalier {

DecoderWeights bind_decoder(const DecoderConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size, q = c.num_heads * c.head_dim, kv = c.num_kv_heads * c.head_dim,
                f = c.intermediate_size;
  DecoderWeights w;
  w.embed_tokens = source("decoder.embed_tokens.weight", {c.vocab_size, d});
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "decoder.layers." + std::to_string(i) + ".";
    const auto bias = [&](const char* name, int64_t size) {
      return c.qkv_bias ? source(layer + "self_attn." + name + ".bias", {size}) : at::Tensor();
    };
    w.layers.push_back({.norm1 = source(layer + "input_layernorm.weight", {d}),
                        .norm2 = source(layer + "post_attention_layernorm.weight", {d}),
                        .q = source(layer + "self_attn.q_proj.weight", {q, d}),
                        .k = source(layer + "self_attn.k_proj.weight", {kv, d}),
                        .v = source(layer + "self_attn.v_proj.weight", {kv, d}),
                        .o = source(layer + "self_attn.o_proj.weight", {d, q}),
                        .gate = source(layer + "mlp.gate_proj.weight", {f, d}),
                        .up = source(layer + "mlp.up_proj.weight", {f, d}),
                        .down = source(layer + "mlp.down_proj.weight", {d, f}),
                        .q_bias = bias("q_proj", q),
                        .k_bias = bias("k_proj", kv),
                        .v_bias = bias("v_proj", kv)});
  }
  w.norm = source("decoder.norm.weight", {d});
  w.head = c.tied_head ? w.embed_tokens : source("lm_head.weight", {c.vocab_size, d});
  return w;
}

namespace {

// Row by row, in pieces: the float32 copy of a head may be larger than the rest of the model.
void quantise(at::Tensor& weight, at::Tensor& scale) {
  constexpr int64_t kElementsAtOnce = int64_t{1} << 24;
  const int64_t step = std::max<int64_t>(1, kElementsAtOnce / std::max<int64_t>(1, weight.size(1)));
  std::vector<at::Tensor> whole, scales;
  for (int64_t o = 0; o < weight.size(0); o += step) {
    const at::Tensor rows = weight.slice(0, o, o + step).to(at::kFloat);
    const at::Tensor of_rows = rows.abs().amax(1) / 127.0;
    scales.push_back(of_rows);
    // A row of zeros has scale 0 and stays zeros.
    whole.push_back((rows / of_rows.clamp_min(1e-30).unsqueeze(1)).round().clamp(-127, 127).to(at::kChar));
  }
  weight = at::cat(whole);
  scale = at::cat(scales);
}

}  // namespace

void quantise_to_int8(DecoderWeights& weights) {
  for (DecoderLayerWeights& layer : weights.layers) {
    quantise(layer.q, layer.scales.q);
    quantise(layer.k, layer.scales.k);
    quantise(layer.v, layer.scales.v);
    quantise(layer.o, layer.scales.o);
    quantise(layer.gate, layer.scales.gate);
    quantise(layer.up, layer.scales.up);
    quantise(layer.down, layer.scales.down);
  }
  quantise(weights.head, weights.head_scale);  // a tied embedding keeps its own tensor
}

}  // namespace espalier
