// SPDX-License-Identifier: Apache-2.0
#include <math.h>

#include "kernels/ops/merge_states/merge_states.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

// A warp a row and head: every lane computes the weights for itself, then takes packs of N elements in turn.
// Memory-bound: reads 2 elements and writes 1. With N > 1 rows must be aligned to packs.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads) merge_kernel(MergeStatesProblem p) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (i >= p.num_rows * p.num_heads) return;
  const int64_t row = i / p.num_heads, head = i % p.num_heads;
  const float lse_a = p.a.lse[head * p.a.lse_stride + row], lse_b = p.b.lse[head * p.b.lse_stride + row];
  const float peak = fmaxf(lse_a, lse_b), base = peak == -INFINITY ? 0.0F : peak;
  const float mass_a = expf(lse_a - base), mass_b = expf(lse_b - base), mass = mass_a + mass_b;
  const float weight_a = mass_a > 0 ? mass_a / mass : 0.0F, weight_b = mass_b > 0 ? mass_b / mass : 0.0F;
  const T* a = static_cast<const T*>(p.a.output) + i * p.head_dim;
  const T* b = static_cast<const T*>(p.b.output) + i * p.head_dim;
  T* out = static_cast<T*>(p.output) + i * p.head_dim;
  for (int64_t column = (threadIdx.x % kWarpSize) * N; column < p.head_dim; column += kWarpSize * N) {
    const Pack<T, N> from_a = load_pack<N>(a + column), from_b = load_pack<N>(b + column);
    Pack<T, N> result;
    for (int j = 0; j < N; ++j) {
      // A part of weight 0 may hold anything.
      const float share_a = weight_a > 0 ? weight_a * to_float(from_a.values[j]) : 0.0F;
      const float share_b = weight_b > 0 ? weight_b * to_float(from_b.values[j]) : 0.0F;
      result.values[j] = from_float<T>(share_a + share_b);
    }
    store_pack(out + column, result);
  }
  if (threadIdx.x % kWarpSize == 0) p.lse[head * p.num_rows + row] = mass > 0 ? peak + logf(mass) : -INFINITY;
}

template <typename T, int N>
void launch(const MergeStatesProblem& p, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((p.num_rows * p.num_heads + kWarps - 1) / kWarps);
  merge_kernel<T, N><<<blocks, kThreads, 0, stream>>>(p);
}

}  // namespace

cudaError_t merge_states_cuda(const MergeStatesProblem& p, cudaStream_t stream) {
  if (p.num_rows * p.num_heads == 0) return cudaSuccess;
  visit_element(p.type, [&]<typename T>(T*) {
    const bool fits = pointers_fit_packs(p.a.output, p.b.output, p.output) && extents_fit_packs<T>(p.head_dim);
    const auto run = fits ? launch<T, kPackSize<T>> : launch<T, 1>;
    run(p, stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
