// SPDX-License-Identifier: Apache-2.0
#include "model/decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "espalier/ops.h"

namespace espalier {

namespace {

double scaled_frequency(const RopeScaling& scaling, double frequency) {
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
    case RopeScaling::Kind::kDynamic:
      return frequency;
    case RopeScaling::Kind::kLinear:
      return frequency / scaling.factor;
    case RopeScaling::Kind::kLlama3: {
      // Long waves are stretched by the factor, short ones are left alone, those between are blended.
      const double wavelength = 2 * std::numbers::pi / frequency;
      const double original = static_cast<double>(scaling.original_max_positions);
      if (wavelength < original / scaling.high_freq_factor) return frequency;
      if (wavelength > original / scaling.low_freq_factor) return frequency / scaling.factor;
      const double smooth =
          (original / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
      return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
    }
  }
  return frequency;
}

// float32 [n, d_h / 2]. With three-part ids each section of the frequencies turns with a part of its own.
at::Tensor half_angles(const DecoderConfig& config, const at::Tensor& frequencies, const at::Tensor& position_id) {
  const at::Tensor all = position_id.to(at::kFloat).unsqueeze(-1) * frequencies;
  if (position_id.dim() == 1) return all;
  std::vector<at::Tensor> sections;
  int64_t begin = 0;
  for (size_t part = 0; part < config.mrope_section.size(); ++part) {
    const int64_t end = begin + config.mrope_section[part];
    sections.push_back(all.select(0, static_cast<int64_t>(part)).slice(1, begin, end));
    begin = end;
  }
  return at::cat(sections, 1);
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale) {
  return scale.defined() ? ops::linear_int8(x, weight, scale) : ops::linear(x, weight);
}

at::Tensor biased(const at::Tensor& x, const at::Tensor& bias) {
  return bias.defined() ? x + bias : x;
}

}  // namespace

at::Tensor rotary_frequencies(const DecoderConfig& config) {
  const int64_t half = config.head_dim / 2;
  at::Tensor frequencies = at::empty({half}, at::kFloat);
  for (int64_t i = 0; i < half; ++i) {
    const double frequency =
        1.0 / std::pow(config.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim));
    frequencies.data_ptr<float>()[i] = static_cast<float>(scaled_frequency(config.rope_scaling, frequency));
  }
  return frequencies;
}

Rotary rotary(const DecoderConfig& config, const at::Tensor& position_id, at::ScalarType dtype) {
  return rotary(config, rotary_frequencies(config).to(position_id.device()), position_id, dtype);
}

Rotary rotary(const DecoderConfig& config, const at::Tensor& frequencies, const at::Tensor& position_id,
              at::ScalarType dtype) {
  TORCH_CHECK(position_id.dim() == 1 || (position_id.size(0) == 3 && config.mrope_section.size() == 3),
              "rotary: position ids of shape ", position_id.sizes(), " for ", config.mrope_section.size(), " sections");
  const at::Tensor half = half_angles(config, frequencies, position_id);
  const at::Tensor angles = at::cat({half, half}, 1);
  return {angles.cos().to(dtype), angles.sin().to(dtype)};
}

at::Tensor embed_tokens(const DecoderWeights& weights, const at::Tensor& ids) {
  return weights.embed_tokens.index_select(0, ids);
}

QueryKeyValue project_qkv(const DecoderConfig& config, const DecoderLayerWeights& layer, const at::Tensor& x,
                          const Rotary& r) {
  const int64_t n = x.size(0);
  const at::Tensor normed = ops::rms_norm(x, layer.norm1, config.rms_norm_eps);
  const at::Tensor q =
      biased(linear(normed, layer.q, layer.scales.q), layer.q_bias).view({n, config.num_heads, config.head_dim});
  const at::Tensor k =
      biased(linear(normed, layer.k, layer.scales.k), layer.k_bias).view({n, config.num_kv_heads, config.head_dim});
  const at::Tensor v =
      biased(linear(normed, layer.v, layer.scales.v), layer.v_bias).view({n, config.num_kv_heads, config.head_dim});
  auto [query, key] = ops::rope(q, k, r.cos, r.sin);
  return {query, key, v};
}

at::Tensor add_attention(const DecoderLayerWeights& layer, const at::Tensor& x, const at::Tensor& attended) {
  return x + linear(attended.flatten(1), layer.o, layer.scales.o);
}

at::Tensor add_mlp(const DecoderConfig& config, const DecoderLayerWeights& layer, const at::Tensor& x) {
  const at::Tensor normed = ops::rms_norm(x, layer.norm2, config.rms_norm_eps);
  return x +
         linear(ops::silu_mul(linear(normed, layer.gate, layer.scales.gate), linear(normed, layer.up, layer.scales.up)),
                layer.down, layer.scales.down);
}

at::Tensor final_norm(const DecoderConfig& config, const DecoderWeights& weights, const at::Tensor& x) {
  return ops::rms_norm(x, weights.norm, config.rms_norm_eps);
}

at::Tensor logits(const DecoderWeights& weights, const at::Tensor& normed) {
  return linear(normed, weights.head, weights.head_scale);
}

double attention_scale(const DecoderConfig& config) {
  return 1.0 / std::sqrt(static_cast<double>(config.head_dim));
}

}  // namespace espalier
