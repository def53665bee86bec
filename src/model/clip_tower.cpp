// SPDX-License-Identifier: Apache-2.0
#include "model/clip_tower.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/full.h>
#include <ATen/ops/upsample_bicubic2d.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "espalier/ops.h"

namespace espalier {

namespace {

// Positions of the class token and of a grid of rows x cols patches, [1 + rows·cols, d]: those of the tower's own grid
// between which others lie are interpolated, as Transformers' interpolate_pos_encoding does.
at::Tensor positions_for(const ClipConfig& config, const at::Tensor& embedding, int64_t rows, int64_t cols) {
  const int64_t n = config.grid();
  if (rows == n && cols == n) return embedding;
  const at::Tensor own = embedding.slice(0, 1).to(at::kFloat).view({1, n, n, config.hidden_size}).permute({0, 3, 1, 2});
  const at::Tensor patches = at::upsample_bicubic2d(own, {rows, cols}, /*align_corners=*/false)
                                 .permute({0, 2, 3, 1})
                                 .reshape({rows * cols, config.hidden_size});
  return at::cat({embedding.slice(0, 0, 1), patches.to(embedding.scalar_type())});
}

// [crops, 1 + p, d]: patches row by row behind the class token, with positions.
at::Tensor embed(const ClipConfig& config, const ClipWeights& w, const at::Tensor& pixels) {
  const at::Tensor grid =
      at::conv2d(pixels.to(w.patch_embedding.scalar_type()), w.patch_embedding, {}, config.patch_size);
  const at::Tensor patches = grid.flatten(2).transpose(1, 2);
  const at::Tensor cls = w.class_embedding.expand({pixels.size(0), 1, config.hidden_size});
  return at::cat({cls, patches}, 1) + positions_for(config, w.position_embedding, grid.size(2), grid.size(3));
}

struct CropRows {  // every crop is a sequence of its own
  at::Tensor begin, key_begin, key_length;
};

CropRows crop_rows(int64_t crops, int64_t rows) {
  return {at::arange(crops + 1, at::kLong) * rows, at::arange(crops, at::kLong) * rows,
          at::full({crops}, rows, at::kLong)};
}

at::Tensor run_layer(const ClipConfig& config, const ClipLayerWeights& w, const at::Tensor& x, const CropRows& rows,
                     int layer, const VisionObserver& observe) {
  const int64_t crops = x.size(0), p1 = x.size(1), d = config.hidden_size, d_h = config.head_dim();
  const auto heads = [&](const at::Tensor& t) { return t.view({crops * p1, config.num_heads, d_h}); };
  const at::Tensor normed = apply(w.norm1, x, config.layer_norm_eps);
  const at::Tensor q = heads(apply(w.q, normed)), k = heads(apply(w.k, normed)), v = heads(apply(w.v, normed));
  const auto [attended, lse] = ops::attention({.query = q,
                                               .key = k,
                                               .value = v,
                                               .query_begin = rows.begin,
                                               .key_begin = rows.key_begin,
                                               .key_length = rows.key_length,
                                               .scale = 1.0 / std::sqrt(double(d_h)),
                                               .is_causal = false});
  at::Tensor h = x + apply(w.out, attended.view({crops, p1, d}));
  h = h + apply(w.fc2, apply(config.activation, apply(w.fc1, apply(w.norm2, h, config.layer_norm_eps))));
  if (observe) observe({layer, q, k, lse, h});
  return h;
}

}  // namespace

ClipWeights bind_clip(const ClipConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size;
  ClipWeights w;
  w.class_embedding = source("vision.embeddings.class_embedding", {d});
  w.patch_embedding = source("vision.embeddings.patch_embedding.weight", {d, c.channels, c.patch_size, c.patch_size});
  w.position_embedding = source("vision.embeddings.position_embedding.weight", {1 + c.num_patches(), d});
  w.pre_norm = bind_layer_norm(source, "vision.pre_layrnorm", d);
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "vision.encoder.layers." + std::to_string(i) + ".";
    ClipLayerWeights l;
    l.norm1 = bind_layer_norm(source, layer + "layer_norm1", d);
    l.q = bind_linear(source, layer + "self_attn.q_proj", d, d);
    l.k = bind_linear(source, layer + "self_attn.k_proj", d, d);
    l.v = bind_linear(source, layer + "self_attn.v_proj", d, d);
    l.out = bind_linear(source, layer + "self_attn.out_proj", d, d);
    l.norm2 = bind_layer_norm(source, layer + "layer_norm2", d);
    l.fc1 = bind_linear(source, layer + "mlp.fc1", c.intermediate_size, d);
    l.fc2 = bind_linear(source, layer + "mlp.fc2", d, c.intermediate_size);
    w.layers.push_back(std::move(l));
  }
  return w;
}

VisionFeatures run_clip(const ClipConfig& config, const ClipWeights& weights, const at::Tensor& pixels,
                        std::span<const int> states, int num_layers, const VisionObserver& observe) {
  at::Tensor x = apply(weights.pre_norm, embed(config, weights, pixels), config.layer_norm_eps);
  const CropRows rows = crop_rows(x.size(0), x.size(1));
  std::vector<at::Tensor> features(states.size());
  const auto keep_features = [&](int state) {
    for (size_t i = 0; i < states.size(); ++i)
      if (states[i] == state) features[i] = x;
  };
  keep_features(0);
  for (int layer = 0; layer < num_layers; ++layer) {
    x = run_layer(config, weights.layers[static_cast<size_t>(layer)], x, rows, layer, observe);
    keep_features(layer + 1);
  }
  const at::Tensor selected = features.size() == 1 ? features[0] : at::cat(features, -1);
  return {selected.slice(1, 1), selected.select(1, 0)};
}

}  // namespace espalier
