// SPDX-License-Identifier: Apache-2.0
#include "model/patch_vit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "espalier/ops.h"

namespace espalier {

namespace {

constexpr double kNormEps = 1e-6;  // of every norm of the tower; config.json does not say it
constexpr double kRopeTheta = 10000.0;

// Cells are put into the order of their windows once, so that a window is a run of rows in every layer. Without
// windows there is one, the whole picture.
struct Windows {
  std::vector<int64_t> order;  // [cells]: which cell (row by row) stands there
  std::vector<int64_t> begin;  // of each window in patches, and the end
};

Windows windows_of(const PatchVitConfig& config, int64_t cell_rows, int64_t cell_cols) {
  const int64_t side = config.window_size > 0 ? config.window_size / config.merge_size / config.patch_size
                                              : std::max(cell_rows, cell_cols);
  const int64_t patches = config.patches_per_token();
  Windows windows{{}, {0}};
  for (int64_t top = 0; top < cell_rows; top += side)
    for (int64_t left = 0; left < cell_cols; left += side) {
      for (int64_t row = top; row < std::min(top + side, cell_rows); ++row)
        for (int64_t col = left; col < std::min(left + side, cell_cols); ++col)
          windows.order.push_back(row * cell_cols + col);
      windows.begin.push_back(std::ssize(windows.order) * patches);
    }
  return windows;
}

// cos and sin [n, d_h] in float32. A quarter of the frequencies turns with the patch's row, a quarter with its column,
// and the half is doubled for the rotate-half form.
std::pair<at::Tensor, at::Tensor> rotary(const PatchVitConfig& config, const Windows& windows, int64_t cell_cols) {
  const int64_t half = config.head_dim() / 2, n = windows.begin.back(), merge = config.merge_size;
  at::Tensor frequency = at::empty({half / 2}, at::kFloat);
  for (int64_t i = 0; i < half / 2; ++i)
    frequency.data_ptr<float>()[i] =
        static_cast<float>(1.0 / std::pow(kRopeTheta, 2.0 * static_cast<double>(i) / static_cast<double>(half)));
  at::Tensor place = at::empty({2, n, 1}, at::kFloat);
  float* row = place.data_ptr<float>();
  float* col = row + n;
  for (const int64_t cell : windows.order)
    for (int64_t patch = 0; patch < merge * merge; ++patch) {
      const int64_t y = cell / cell_cols * merge + patch / merge, x = cell % cell_cols * merge + patch % merge;
      *row++ = static_cast<float>(y);
      *col++ = static_cast<float>(x);
    }
  const at::Tensor by_row = place[0] * frequency, by_col = place[1] * frequency;
  const at::Tensor angle = at::cat({by_row, by_col, by_row, by_col}, 1);
  return {angle.cos(), angle.sin()};
}

struct Runs {  // of patches that see each other
  at::Tensor begin, key_begin, key_length;
};

Runs runs_of(const std::vector<int64_t>& begin) {
  const at::Tensor begins = at::tensor(begin, at::kLong);
  return {begins, begins.slice(0, 0, -1), begins.slice(0, 1) - begins.slice(0, 0, -1)};
}

class Tower {
 public:
  Tower(const PatchVitConfig& config, const PatchVitWeights& weights, int64_t rows, int64_t cols)
      : config_(config), weights_(weights) {
    const int64_t cell_cols = cols / config.merge_size;
    const Windows windows = windows_of(config, rows / config.merge_size, cell_cols);
    const at::Device device = weights.patch_embedding.device();
    order_ = at::tensor(windows.order, at::kLong).to(device);
    inverse_ = order_.argsort();
    std::tie(cos_, sin_) = rotary(config, windows, cell_cols);
    cos_ = cos_.to(device);
    sin_ = sin_.to(device);
    windows_ = runs_of(windows.begin);
    whole_ = runs_of({0, windows.begin.back()});
  }

  at::Tensor run(const at::Tensor& patches, const VisionObserver& observe) const {
    const at::Tensor& embedding = weights_.patch_embedding;
    at::Tensor x = reorder(ops::linear(patches.to(embedding.scalar_type()), embedding), order_);
    for (int layer = 0; layer < config_.num_layers; ++layer) x = run_layer(layer, x, observe);
    return norm(weights_.merger_norm, x).view({order_.size(0), -1}).index_select(0, inverse_);
  }

 private:
  // Rows of [n, ...] with each cell's patches moving together.
  at::Tensor reorder(const at::Tensor& x, const at::Tensor& index) const {
    return x.unflatten(0, {index.size(0), -1}).index_select(0, index).flatten(0, 1);
  }

  at::Tensor norm(const LayerNorm& weights, const at::Tensor& x) const {
    return config_.norm == PatchVitConfig::Norm::kRms ? ops::rms_norm(x, weights.weight, kNormEps)
                                                      : apply(weights, x, kNormEps);
  }

  at::Tensor mlp(const PatchVitLayerWeights& w, const at::Tensor& x) const {
    return apply(w.down, config_.mlp == PatchVitConfig::Mlp::kGated ? ops::silu_mul(apply(w.gate, x), apply(w.up, x))
                                                                    : apply(config_.activation, apply(w.up, x)));
  }

  // In float32 whatever the model's dtype: angles grow with the picture.
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& query, const at::Tensor& key) const {
    const auto [q, k] = ops::rope(query.to(at::kFloat), key.to(at::kFloat), cos_, sin_);
    return {q.to(query.scalar_type()), k.to(key.scalar_type())};
  }

  at::Tensor run_layer(int layer, const at::Tensor& x, const VisionObserver& observe) const {
    const PatchVitLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const int64_t n = x.size(0);
    const at::Tensor qkv = apply(w.qkv, norm(w.norm1, x)).view({n, 3, config_.num_heads, config_.head_dim()});
    const auto [q, k] = rotate(qkv.select(1, 0), qkv.select(1, 1));
    const bool sees_all = std::ranges::count(config_.full_attention_layers, layer) > 0;
    const Runs& runs = sees_all ? whole_ : windows_;
    const auto [attended, lse] = ops::attention({.query = q,
                                                 .key = k,
                                                 .value = qkv.select(1, 2),
                                                 .query_begin = runs.begin,
                                                 .key_begin = runs.key_begin,
                                                 .key_length = runs.key_length,
                                                 .scale = 1.0 / std::sqrt(static_cast<double>(config_.head_dim())),
                                                 .is_causal = false});
    at::Tensor h = x + apply(w.out, attended.flatten(1));
    h = h + mlp(w, norm(w.norm2, h));
    if (observe)
      observe({layer, reorder(q, inverse_), reorder(k, inverse_), reorder(lse.t(), inverse_).t(),
               reorder(h, inverse_).unsqueeze(0)});
    return h;
  }

  const PatchVitConfig& config_;
  const PatchVitWeights& weights_;
  at::Tensor order_, inverse_;  // int64 [cells]: row by row -> by window, and back
  at::Tensor cos_, sin_;        // float32 [n, d_h] by window
  Runs windows_, whole_;
};

}  // namespace

PatchVitWeights bind_patch_vit(const PatchVitConfig& c, const WeightSource& source) {
  const int64_t d = c.hidden_size, f = c.intermediate_size;
  const auto norm = [&](const std::string& name) {
    return c.norm == PatchVitConfig::Norm::kLayer ? bind_layer_norm(source, name, d)
                                                  : LayerNorm{source(name + ".weight", {d}), {}};
  };
  const bool is_gated = c.mlp == PatchVitConfig::Mlp::kGated;
  PatchVitWeights w;
  w.patch_embedding =
      source("vision.patch_embed.proj.weight", {d, c.channels, c.temporal_patch_size, c.patch_size, c.patch_size});
  if (w.patch_embedding.defined()) w.patch_embedding = w.patch_embedding.flatten(1);
  for (int i = 0; i < c.num_layers; ++i) {
    const std::string layer = "vision.blocks." + std::to_string(i) + ".";
    PatchVitLayerWeights l;
    l.norm1 = norm(layer + "norm1");
    l.norm2 = norm(layer + "norm2");
    l.qkv = bind_linear(source, layer + "attn.qkv", 3 * d, d);
    l.out = bind_linear(source, layer + "attn.proj", d, d);
    if (is_gated) l.gate = bind_linear(source, layer + "mlp.gate_proj", f, d);
    l.up = bind_linear(source, layer + (is_gated ? "mlp.up_proj" : "mlp.fc1"), f, d);
    l.down = bind_linear(source, layer + (is_gated ? "mlp.down_proj" : "mlp.fc2"), d, f);
    w.layers.push_back(std::move(l));
  }
  w.merger_norm = norm("vision.merger.ln_q");
  return w;
}

at::Tensor run_patch_vit(const PatchVitConfig& config, const PatchVitWeights& weights, const at::Tensor& patches,
                         int64_t rows, int64_t cols, const VisionObserver& observe) {
  TORCH_CHECK(patches.dim() == 2 && patches.size(0) == rows * cols && rows % config.merge_size == 0 &&
                  cols % config.merge_size == 0,
              "vision tower: ", patches.sizes(), " are not the patches of a grid of ", rows, " x ", cols);
  return Tower(config, weights, rows, cols).run(patches, observe);
}

}  // namespace espalier
