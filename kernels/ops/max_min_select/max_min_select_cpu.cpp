// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/ops/max_min_select/max_min_select_arguments.h"
#include "kernels/support/choice_names.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cosine_matrix.h"

namespace espalier::kernels {

namespace {

double distance_of(const double* x, const double* y, int64_t d, ops::Distance distance) {
  double dot = 0.0, xx = 0.0, yy = 0.0, sum = 0.0;
  for (int64_t i = 0; i < d; ++i) {
    dot += x[i] * y[i];
    xx += x[i] * x[i];
    yy += y[i] * y[i];
    sum += distance == ops::Distance::kL1 ? std::abs(x[i] - y[i]) : (x[i] - y[i]) * (x[i] - y[i]);
  }
  if (distance == ops::Distance::kL1) return sum;
  if (distance == ops::Distance::kL2) return std::sqrt(sum);
  return std::sqrt(xx) < 1e-12 || std::sqrt(yy) < 1e-12 ? 1.0 : 1.0 - dot / std::sqrt(xx * yy);
}

// The rule, for distances of either type. `at(i, j)` is their distance.
template <typename T, typename At>
void farthest_first(int64_t size, int64_t num_kept, const bool* forced, const At& at, int64_t* picks,
                    double* distances) {
  constexpr T kFar = std::numeric_limits<T>::infinity();
  std::vector<T> nearest(size, kFar);
  std::vector<bool> is_picked(size, false);
  const bool is_any_forced = forced != nullptr && std::any_of(forced, forced + size, [](bool f) { return f; });
  if (num_kept > 0 && !is_any_forced) {  // the first pick is the row farthest from its nearest neighbour
    for (int64_t i = 0; i < size; ++i)
      for (int64_t j = 0; j < size; ++j)
        if (j != i) nearest[i] = std::min(nearest[i], at(i, j));
  }
  for (int64_t step = 0; step < num_kept; ++step) {
    int64_t pick = -1;
    for (int64_t i = 0; i < size && is_any_forced && pick < 0; ++i)
      if (forced[i] && !is_picked[i]) pick = i;
    if (pick < 0)
      for (int64_t i = 0; i < size; ++i)
        if (!is_picked[i] && (pick < 0 || nearest[i] > nearest[pick])) pick = i;
    picks[step] = pick;
    is_picked[pick] = true;
    if (distances != nullptr) distances[step] = nearest[pick];
    if (step == 0) std::fill(nearest.begin(), nearest.end(), kFar);
    for (int64_t i = 0; i < size; ++i) nearest[i] = std::min(nearest[i], at(pick, i));
  }
}

float difference(const float* x, const float* y, int64_t d, bool is_squared) {
  constexpr int64_t kLanes = 16;  // independent sums: the compiler makes vectors of them
  float sum[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float delta = x[i + lane] - y[i + lane];
      sum[lane] += is_squared ? delta * delta : std::abs(delta);
    }
  float total = 0.0F;
  for (; i < d; ++i) total += is_squared ? (x[i] - y[i]) * (x[i] - y[i]) : std::abs(x[i] - y[i]);
  for (const float part : sum) total += part;
  return total;
}

// Not by products: |x|² + |y|² - 2xy loses what tells near rows apart. Squares stand for roots, whose order is theirs.
void difference_matrix(const FeatureRows& features, int64_t begin, int64_t size, bool is_squared, CpuLevel level,
                       float* out) {
  const int64_t d = features.d;
  std::vector<float> rows(size * d);
  at::parallel_for(0, size, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t c = 0; c < d; ++c)
        rows[i * d + c] = load_element(features.data, (begin + i) * features.stride + c, features.type);
  });
  RowDifferenceLoop* vector = vector_form(level, avx2::row_difference, avx512::row_difference);
  RowDifferenceLoop* distance = vector != nullptr ? vector : difference;
  constexpr int64_t kTile = 32;  // rows that stay in the cache while all others pass
  const int64_t num_tiles = (size + kTile - 1) / kTile;
  at::parallel_for(0, num_tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t top = (tile % 2 == 0 ? tile / 2 : num_tiles - 1 - tile / 2) * kTile;
      for (int64_t j = top; j < size; ++j)
        for (int64_t i = top; i < std::min(top + kTile, j + 1); ++i)
          out[i * size + j] = out[j * size + i] = distance(&rows[i * d], &rows[j * d], d, is_squared);
    }
  });
}

}  // namespace

void max_min_select_plain(const double* features, int64_t size, int64_t d, int64_t num_kept, ops::Distance distance,
                          const bool* forced, int64_t* picks, double* distances) {
  const auto at = [&](int64_t i, int64_t j) { return distance_of(features + i * d, features + j * d, d, distance); };
  farthest_first<double>(size, num_kept, forced, at, picks, distances);
}

void max_min_select_blocked(const FeatureRows& features, const SelectionBlock* blocks, int64_t count,
                            ops::Distance distance, CpuLevel level) {
  for (int64_t b = 0; b < count; ++b) {
    const auto [begin, size, num_kept, forced, picks] = blocks[b];
    const std::unique_ptr<float[]> matrix(new float[size * size]);
    float* values = matrix.get();
    if (distance == ops::Distance::kCosine)
      cosine_matrix(features, begin, size, level, values);
    else
      difference_matrix(features, begin, size, distance == ops::Distance::kL2, level, values);
    if (distance == ops::Distance::kCosine)
      for (int64_t i = 0; i < size * size; ++i) values[i] = 1.0F - values[i];
    for (int64_t i = 0; i < size * size; ++i) values[i] = values[i] > 0.0F ? values[i] : 0.0F;  // NaN becomes 0
    const int64_t stride = size;
    farthest_first<float>(
        size, num_kept, forced, [=](int64_t i, int64_t j) { return values[i * stride + j]; }, picks, nullptr);
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

at::Tensor max_min_select_cpu(const at::Tensor& features_in, const at::Tensor& block_begin_in,
                              const at::Tensor& num_kept_in, std::string_view distance,
                              const std::optional<at::Tensor>& forced_in) {
  const auto measure = choice_named<Distance>(distance);
  const int64_t total =
      kernels::check_row_selection("max_min_select", features_in, block_begin_in, num_kept_in, forced_in);
  const at::Tensor features = features_in.stride(1) == 1 ? features_in : features_in.contiguous();
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  std::vector<kernels::SelectionBlock> blocks;
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < num_kept.numel(); ++i) {
    const int64_t kept = num_kept.const_data_ptr<int64_t>()[i];
    if (kept > 0)
      blocks.push_back({begins[i], begins[i + 1] - begins[i], kept,
                        forced.defined() ? forced.const_data_ptr<bool>() + begins[i] : nullptr, picks});
    picks += kept;
  }
  kernels::note_kernel("max_min_select", kernels::panel_kernel_name(kernels::cpu_level(),
                                                                    kernels::element_type(features, "max_min_select")));
  kernels::max_min_select_blocked({features.const_data_ptr(), features.stride(0), features.size(1),
                                   kernels::element_type(features, "max_min_select")},
                                  blocks.data(), static_cast<int64_t>(blocks.size()), measure, kernels::cpu_level());
  for (const kernels::SelectionBlock& block : blocks)
    for (int64_t k = 0; k < block.num_kept; ++k) block.picks[k] += block.begin;
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("max_min_select", max_min_select_cpu);
}

}  // namespace espalier::ops
