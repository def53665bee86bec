// SPDX-License-Identifier: Apache-2.0
// Products of two rows by one warp, in float32: attention probabilities and cosines. Every lane gets the result. Used
// by .cu only.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {

// N: elements that a lane reads at once. Both rows must be aligned to packs of N and d a multiple of N.
template <int N, typename T>
__device__ float warp_dot(const T* a, const T* b, int64_t d) {
  float sum = 0.0F;
  for (int64_t i = (threadIdx.x % kWarpSize) * N; i < d; i += kWarpSize * N) {
    const Pack<T, N> x = load_pack<N>(a + i), y = load_pack<N>(b + i);
    for (int j = 0; j < N; ++j) sum += to_float(x.values[j]) * to_float(y.values[j]);
  }
  return warp_sum(sum);
}

template <typename T>
__device__ float warp_cosine(const T* row, const float* direction, int64_t d) {
  float dot = 0.0F, row_square = 0.0F, direction_square = 0.0F;
  for (int64_t i = threadIdx.x % kWarpSize; i < d; i += kWarpSize) {
    const float x = to_float(row[i]), y = direction[i];
    dot += x * y;
    row_square += x * x;
    direction_square += y * y;
  }
  const float row_norm = sqrtf(warp_sum(row_square)), direction_norm = sqrtf(warp_sum(direction_square));
  dot = warp_sum(dot);
  return row_norm < kSmallestNorm || direction_norm < kSmallestNorm ? 0.0F : dot / row_norm / direction_norm;
}

// The key that is the query row's own.
__device__ inline int64_t own_key(const ProbeShape& shape, int64_t row) {
  return shape.own_key != nullptr ? shape.own_key[row] : row;
}

// attention_probability_plain by a warp.
template <int N, typename T>
__device__ float warp_probability(const ProbeLayer& layer, const ProbeShape& shape, int64_t head, int64_t row,
                                  int64_t column) {
  const float lse = layer.lse[head * shape.num_queries + row];
  const int64_t own = own_key(shape, row);
  const bool is_behind = shape.is_causal && column > own;
  const bool is_outside = shape.window > 0 && shape.position[own] - shape.window >= shape.position[column];
  if (is_behind || is_outside || lse == -INFINITY) return 0.0F;  // the same in every lane
  const int64_t kv_head = head / (shape.num_heads / shape.num_kv_heads);
  const T* query = static_cast<const T*>(layer.query) + row * layer.query_stride + head * shape.d;
  const T* key = static_cast<const T*>(layer.key) + column * layer.key_stride + kv_head * shape.d;
  return expf(shape.scale * warp_dot<N>(query, key, shape.d) - lse);
}

// The widest pack (4, 2 or 1 elements) that the layer's rows are aligned to and that leaves no lane idle.
inline int pack_of_layer(const ProbeLayer& layer, const ProbeShape& shape) {
  const int64_t size = shape.type == ElementType::kFloat32 ? 4 : 2;
  for (const int n : {4, 2}) {
    const uint64_t addresses = reinterpret_cast<uintptr_t>(layer.query) | reinterpret_cast<uintptr_t>(layer.key);
    const bool fits = addresses % (n * size) == 0 && (layer.query_stride | layer.key_stride | shape.d) % n == 0;
    if (fits && shape.d >= kWarpSize * n) return n;
  }
  return 1;
}

// Calls f with the pack's size as a constant: `[&]<int N>(std::integral_constant<int, N>)`.
template <typename F>
void visit_pack(int pack, F&& f) {
  if (pack == 4) return f(std::integral_constant<int, 4>());
  if (pack == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

// Warps of a block, a column each.
inline constexpr int kColumnWarps = 8;

// The column of this warp, and its group; group -1 behind the last column.
struct WarpColumn {
  int64_t group, index;
};
__device__ inline WarpColumn warp_column(const ProbeGroupBounds& groups) {
  const int64_t index = groups.first_column + static_cast<int64_t>(blockIdx.x) * kColumnWarps + threadIdx.x / kWarpSize;
  for (int64_t group = 0; group < groups.count; ++group) {
    if (index < groups.bound[group].column_end) return {group, index};
  }
  return {-1, index};
}

}  // namespace espalier::kernels
