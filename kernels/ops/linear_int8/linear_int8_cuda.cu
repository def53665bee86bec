// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear_int8/linear_int8.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// One warp per output: its lanes read packs of N weights, each of which meets all rows. Memory-bound: one byte per
// weight.
template <typename T, int Rows, int N>
__global__ void __launch_bounds__(kThreads)
    linear_int8_kernel(const T* __restrict__ x, const int8_t* __restrict__ weight, const float* __restrict__ scale,
                       T* __restrict__ out, LinearShape shape) {
  const int64_t o = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
  if (o >= shape.out) return;  // whole warps leave
  const int lane = threadIdx.x % kWarpSize;
  float sums[Rows] = {};
  for (int64_t i = static_cast<int64_t>(lane) * N; i < shape.in; i += kWarpSize * N) {
    const Pack<int8_t, N> w = load_pack<N>(weight + o * shape.in + i);
    for (int r = 0; r < Rows; ++r)
      for (int j = 0; j < N; ++j) sums[r] += to_float(x[r * shape.in + i + j]) * static_cast<float>(w.values[j]);
  }
  for (int r = 0; r < Rows; ++r) {
    const float sum = warp_sum(sums[r]);
    if (lane == 0) out[r * shape.out + o] = from_float<T>(sum * scale[o]);
  }
}

template <typename T, int Rows, int N>
void launch(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape,
            cudaStream_t stream) {
  if (shape.rows != Rows) {
    if constexpr (Rows > 1) launch<T, Rows - 1, N>(x, weight, scale, out, shape, stream);
    return;
  }
  const auto blocks = static_cast<unsigned>((shape.out + kWarps - 1) / kWarps);
  linear_int8_kernel<T, Rows, N><<<blocks, kThreads, 0, stream>>>(x, weight, scale, out, shape);
}

}  // namespace

cudaError_t linear_int8_cuda(ElementType type, const void* x, const int8_t* weight, const float* scale, void* out,
                             const LinearShape& shape, cudaStream_t stream) {
  visit_element(type, [&]<typename T>(T*) {
    const bool fits = pointers_fit_packs(weight) && shape.in % 16 == 0;
    const auto run = fits ? launch<T, kFewRows, 16> : launch<T, kFewRows, 1>;
    run(static_cast<const T*>(x), weight, scale, static_cast<T*>(out), shape, stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
