// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/support/cuda/element.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// Block (r, c): pack c · kThreads + thread of row r, one a thread. Memory-bound: reads 2 and writes 1 element for each
// result. Rows and strides must be aligned to packs.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    silu_mul_kernel(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ out, SiluMulShape shape) {
  const int64_t r = blockIdx.x;
  const int64_t i = (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * N;
  if (i >= shape.d) return;
  const Pack<T, N> g = load_pack<N>(gate + r * shape.gate_stride + i);
  Pack<T, N> result = load_pack<N>(up + r * shape.up_stride + i);
  for (int j = 0; j < N; ++j) {
    const float x = to_float(g.values[j]);
    result.values[j] = from_float<T>(x / (1.0F + expf(-x)) * to_float(result.values[j]));
  }
  store_pack(out + r * shape.d + i, result);
}

template <typename T, int N>
void launch(const T* gate, const T* up, T* out, const SiluMulShape& shape, cudaStream_t stream) {
  const int64_t packs = (shape.d + N - 1) / N;
  const dim3 blocks(static_cast<unsigned>(shape.rows), static_cast<unsigned>((packs + kThreads - 1) / kThreads));
  silu_mul_kernel<T, N><<<blocks, kThreads, 0, stream>>>(gate, up, out, shape);
}

}  // namespace

cudaError_t silu_mul_cuda(ElementType type, const void* gate, const void* up, void* out, const SiluMulShape& shape,
                          cudaStream_t stream) {
  visit_element(type, [&]<typename T>(T*) {
    const bool fits =
        pointers_fit_packs(gate, up, out) && extents_fit_packs<T>(shape.d, shape.gate_stride, shape.up_stride);
    const auto run = fits ? launch<T, kPackSize<T>> : launch<T, 1>;
    run(static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(out), shape, stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
