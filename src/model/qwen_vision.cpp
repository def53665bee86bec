// SPDX-License-Identifier: Apache-2.0
#include "model/qwen_vision.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "espalier/ops.h"

namespace espalier {

namespace {

constexpr double kNormEps = 1e-6;  // of every norm of the tower; config.json does not say it
constexpr double kRopeTheta = 10000.0;

// Cells are put into the order of their windows once, so that a window is a run of rows in every layer.
struct Windows {
  std::vector<int64_t> order;  // [cells]: which cell (row by row) stands there
  std::vector<int64_t> begin;  // of each window in patches, and the end
};

Windows windows_of(const VisionConfig& config, int64_t cell_rows, int64_t cell_cols) {
  const int64_t side = config.window_size / config.merge_size / config.patch_size;
  const int64_t patches = config.merge_size * config.merge_size;
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
std::pair<at::Tensor, at::Tensor> rotary(const VisionConfig& config, const Windows& windows, int64_t cell_cols) {
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
      *row++ = static_cast<float>(cell / cell_cols * merge + patch / merge);
      *col++ = static_cast<float>(cell % cell_cols * merge + patch % merge);
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
  Tower(const VisionConfig& config, const QwenVisionWeights& weights, int64_t rows, int64_t cols)
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
    return ops::rms_norm(x, weights_.merger_norm, kNormEps).view({order_.size(0), -1}).index_select(0, inverse_);
  }

 private:
  // Rows of [n, ...] with each cell's patches moving together.
  at::Tensor reorder(const at::Tensor& x, const at::Tensor& index) const {
    return x.unflatten(0, {index.size(0), -1}).index_select(0, index).flatten(0, 1);
  }

  // In float32 whatever the model's dtype: angles grow with the picture.
  std::pair<at::Tensor, at::Tensor> rotate(const at::Tensor& query, const at::Tensor& key) const {
    const auto [q, k] = ops::rope(query.to(at::kFloat), key.to(at::kFloat), cos_, sin_);
    return {q.to(query.scalar_type()), k.to(key.scalar_type())};
  }

  at::Tensor run_layer(int layer, const at::Tensor& x, const VisionObserver& observe) const {
    const QwenVisionLayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    const int64_t n = x.size(0);
    const auto apply = [](const Linear& linear, const at::Tensor& t) {
      return ops::linear(t, linear.weight, linear.bias);
    };
    const at::Tensor qkv =
        apply(w.qkv, ops::rms_norm(x, w.norm1, kNormEps)).view({n, 3, config_.num_heads, config_.head_dim()});
    const auto [q, k] = rotate(qkv.select(1, 0), qkv.select(1, 1));
    const bool sees_all = std::ranges::count(config_.full_attention_layers, layer) > 0;
    const Runs& runs = sees_all ? whole_ : windows_;
    const auto [attended, lse] =
        ops::attention(q, k, qkv.select(1, 2), runs.begin, runs.key_begin, runs.key_length,
                       1.0 / std::sqrt(static_cast<double>(config_.head_dim())), /*is_causal=*/false);
    at::Tensor h = x + apply(w.out, attended.flatten(1));
    const at::Tensor normed = ops::rms_norm(h, w.norm2, kNormEps);
    h = h + apply(w.down, ops::silu_mul(apply(w.gate, normed), apply(w.up, normed)));
    if (observe)
      observe({layer, reorder(q, inverse_), reorder(k, inverse_), reorder(lse.t(), inverse_).t(),
               reorder(h, inverse_).unsqueeze(0)});
    return h;
  }

  const VisionConfig& config_;
  const QwenVisionWeights& weights_;
  at::Tensor order_, inverse_;  // int64 [cells]: row by row -> by window, and back
  at::Tensor cos_, sin_;        // float32 [n, d_h] by window
  Runs windows_, whole_;
};

}  // namespace

at::Tensor run_qwen_vision(const VisionConfig& config, const QwenVisionWeights& weights, const at::Tensor& patches,
                           int64_t rows, int64_t cols, const VisionObserver& observe) {
  TORCH_CHECK(patches.dim() == 2 && patches.size(0) == rows * cols && rows % config.merge_size == 0 &&
                  cols % config.merge_size == 0,
              "qwen vision: ", patches.sizes(), " are not the patches of a grid of ", rows, " x ", cols);
  return Tower(config, weights, rows, cols).run(patches, observe);
}

}  // namespace espalier
