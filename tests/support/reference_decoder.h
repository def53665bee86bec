// SPDX-License-Identifier: Apache-2.0
// The decoder of Llama and Qwen2 in float64 with a full score matrix and an explicit mask: the slow oracle of the
// runtime. Shares nothing with the runtime but the weights.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <functional>
#include <vector>

#include "model/config.h"
#include "model/weights.h"

namespace espalier::test {

// bool [n, n] for one KV head of one layer: which keys each row sees. Causality is the caller's to put in.
using Visible = std::function<at::Tensor(int layer, int kv_head)>;

namespace reference {

inline at::Tensor f64(const at::Tensor& t) {
  return t.to(at::kDouble);
}

inline at::Tensor norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt(x.pow(2).mean(-1, true) + eps) * f64(weight);
}

// x · weightᵀ, with a bias where there is one.
inline at::Tensor biased(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return at::linear(x, f64(weight), bias.defined() ? f64(bias) : at::Tensor());
}

// Frequency i turns with part 0, 1 or 2 of a position id, as the sections say; angles [n, d_h / 2].
inline at::Tensor half_angles(const DecoderConfig& c, const at::Tensor& position_id, const at::Tensor& inverse) {
  if (position_id.dim() == 1) return f64(position_id).unsqueeze(1) * inverse;
  std::vector<at::Tensor> columns;
  int64_t i = 0;
  for (size_t part = 0; part < 3; ++part)
    for (int64_t k = 0; k < c.mrope_section.at(part); ++k, ++i)
      columns.push_back(f64(position_id.select(0, static_cast<int64_t>(part))).unsqueeze(1) * inverse[i]);
  return at::cat(columns, 1);
}

inline at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {  // [n, h, d]
  const int64_t half = x.size(-1) / 2;
  const at::Tensor turned = at::cat({-x.slice(-1, half), x.slice(-1, 0, half)}, -1);
  return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1);
}

}  // namespace reference

// hidden [n, d] entering layer 0, position_id int64 [n], or [3, n] for M-RoPE -> logits float64 [n, vocab]. RoPE
// without scaling.
inline at::Tensor reference_logits(const DecoderConfig& c, const DecoderWeights& w, const at::Tensor& hidden,
                                   const at::Tensor& position_id, const Visible& visible) {
  using namespace reference;
  const int64_t n = hidden.size(0), group = c.num_heads / c.num_kv_heads;
  std::vector<double> frequency;
  for (int64_t i = 0; i < c.head_dim / 2; ++i)
    frequency.push_back(
        static_cast<double>(static_cast<float>(1.0 / std::pow(c.rope_theta, 2.0 * double(i) / double(c.head_dim)))));
  const at::Tensor inverse = at::tensor(frequency, at::kDouble);
  const at::Tensor half = half_angles(c, position_id, inverse);
  const at::Tensor angle = at::cat({half, half}, 1), cos = angle.cos(), sin = angle.sin();
  at::Tensor x = f64(hidden);
  for (int layer = 0; layer < c.num_layers; ++layer) {
    const DecoderLayerWeights& l = w.layers[layer];
    const at::Tensor normed = norm(x, l.norm1, c.rms_norm_eps);
    const at::Tensor q = rotate(biased(normed, l.q, l.q_bias).view({n, c.num_heads, c.head_dim}), cos, sin);
    const at::Tensor k = rotate(biased(normed, l.k, l.k_bias).view({n, c.num_kv_heads, c.head_dim}), cos, sin);
    const at::Tensor v = biased(normed, l.v, l.v_bias).view({n, c.num_kv_heads, c.head_dim});
    std::vector<at::Tensor> heads;
    for (int h = 0; h < c.num_heads; ++h) {
      const int64_t g = h / group;
      const at::Tensor scores = q.select(1, h).mm(k.select(1, g).t()) / std::sqrt(double(c.head_dim));
      const at::Tensor mask = visible(layer, static_cast<int>(g));
      heads.push_back(at::softmax(scores.masked_fill(mask.logical_not(), -1e300), -1).mm(v.select(1, g)));
    }
    x = x + at::linear(at::cat(heads, 1), f64(l.o));
    const at::Tensor second = norm(x, l.norm2, c.rms_norm_eps);
    x = x + at::linear(at::silu(at::linear(second, f64(l.gate))) * at::linear(second, f64(l.up)), f64(l.down));
  }
  return at::linear(norm(x, w.norm, c.rms_norm_eps), f64(w.head));
}

}  // namespace espalier::test
