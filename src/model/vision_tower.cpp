// SPDX-License-Identifier: Apache-2.0
#include "model/vision_tower.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/upsample_bicubic2d.h>

#include <cmath>
#include <vector>

#include "espalier/ops.h"

namespace espalier {

namespace {

at::Tensor apply(const Linear& linear, const at::Tensor& x) {
  return ops::linear(x, linear.weight, linear.bias);
}

at::Tensor apply(const LayerNorm& norm, const at::Tensor& x, double eps) {
  return at::layer_norm(x, {x.size(-1)}, norm.weight, norm.bias, eps);
}

at::Tensor apply(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kQuickGelu:
      return x * at::sigmoid(1.702 * x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
    case Activation::kSilu:
      return at::silu(x);
  }
  TORCH_CHECK(false, "activation ", static_cast<int>(activation), " is not one");
}

// Positions of the class token and of a grid of rows x cols patches, [1 + rows·cols, d]: those of the tower's own grid
// between which others lie are interpolated, as Transformers' interpolate_pos_encoding does.
at::Tensor positions_for(const VisionConfig& config, const at::Tensor& embedding, int64_t rows, int64_t cols) {
  const int64_t n = config.grid();
  if (rows == n && cols == n) return embedding;
  const at::Tensor own = embedding.slice(0, 1).to(at::kFloat).view({1, n, n, config.hidden_size}).permute({0, 3, 1, 2});
  const at::Tensor patches = at::upsample_bicubic2d(own, {rows, cols}, /*align_corners=*/false)
                                 .permute({0, 2, 3, 1})
                                 .reshape({rows * cols, config.hidden_size});
  return at::cat({embedding.slice(0, 0, 1), patches.to(embedding.scalar_type())});
}

// [crops, 1 + p, d]: patches row by row behind the class token, with positions.
at::Tensor embed(const VisionConfig& config, const VisionWeights& w, const at::Tensor& pixels) {
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

at::Tensor run_layer(const VisionConfig& config, const VisionLayerWeights& w, const at::Tensor& x, const CropRows& rows,
                     int layer, const VisionObserver& observe) {
  const int64_t crops = x.size(0), p1 = x.size(1), d = config.hidden_size, d_h = config.head_dim();
  const auto heads = [&](const at::Tensor& t) { return t.view({crops * p1, config.num_heads, d_h}); };
  const at::Tensor normed = apply(w.norm1, x, config.layer_norm_eps);
  const at::Tensor q = heads(apply(w.q, normed)), k = heads(apply(w.k, normed)), v = heads(apply(w.v, normed));
  const auto [attended, lse] =
      ops::attention(q, k, v, rows.begin, rows.key_begin, rows.key_length, 1.0 / std::sqrt(double(d_h)),
                     /*is_causal=*/false);
  at::Tensor h = x + apply(w.out, attended.view({crops, p1, d}));
  h = h + apply(w.fc2, apply(config.activation, apply(w.fc1, apply(w.norm2, h, config.layer_norm_eps))));
  if (observe) observe({layer, q, k, lse, h});
  return h;
}

}  // namespace

VisionFeatures run_vision_tower(const ModelConfig& config, const VisionWeights& weights, const at::Tensor& pixels,
                                int num_layers, const VisionObserver& observe) {
  const VisionConfig& vision = config.vision;
  at::Tensor x = apply(weights.pre_norm, embed(vision, weights, pixels), vision.layer_norm_eps);
  const CropRows rows = crop_rows(x.size(0), x.size(1));
  std::vector<at::Tensor> features(config.vision_feature_layers.size());
  const auto keep_features = [&](int state) {
    for (size_t i = 0; i < features.size(); ++i)
      if (config.hidden_state_of_feature(i) == state) features[i] = x;
  };
  keep_features(0);
  for (int layer = 0; layer < num_layers; ++layer) {
    x = run_layer(vision, weights.layers[layer], x, rows, layer, observe);
    keep_features(layer + 1);
  }
  const at::Tensor selected = features.size() == 1 ? features[0] : at::cat(features, -1);
  return {config.keeps_class_token ? selected : selected.slice(1, 1), selected.select(1, 0)};
}

at::Tensor project(const ModelConfig& config, const ProjectorWeights& weights, const at::Tensor& features) {
  return apply(weights.linear2, apply(config.projector_activation, apply(weights.linear1, features)));
}

}  // namespace espalier
