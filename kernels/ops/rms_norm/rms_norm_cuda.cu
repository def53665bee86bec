// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// A block a row; its threads walk the row twice in packs of N, the second time from cache. Reads and writes rows · d
// elements of memory. Rows and weight must be aligned to packs.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const T* __restrict__ x, const T* __restrict__ weight, T* __restrict__ out, int64_t d, float eps) {
  const T* row = x + blockIdx.x * d;
  float sum = 0.0F;
  for (int64_t i = threadIdx.x * N; i < d; i += kThreads * N) {
    const Pack<T, N> pack = load_pack<N>(row + i);
    for (const T v : pack.values) sum += to_float(v) * to_float(v);
  }
  const float scale = rsqrtf(block_sum(sum) / static_cast<float>(d) + eps);
  for (int64_t i = threadIdx.x * N; i < d; i += kThreads * N) {
    Pack<T, N> pack = load_pack<N>(row + i);
    const Pack<T, N> w = load_pack<N>(weight + i);
    for (int j = 0; j < N; ++j) {
      const T normed = from_float<T>(to_float(pack.values[j]) * scale);
      pack.values[j] = from_float<T>(to_float(normed) * to_float(w.values[j]));
    }
    store_pack(out + blockIdx.x * d + i, pack);
  }
}

template <typename T>
void launch(const T* x, const T* weight, T* out, int64_t rows, int64_t d, float eps, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(rows);
  if (extents_fit_packs<T>(d) && pointers_fit_packs(x, weight, out))
    rms_norm_kernel<T, kPackSize<T>><<<blocks, kThreads, 0, stream>>>(x, weight, out, d, eps);
  else
    rms_norm_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(x, weight, out, d, eps);
}

}  // namespace

cudaError_t rms_norm_cuda(ElementType type, const void* x, const void* weight, void* out, int64_t rows, int64_t d,
                          float eps, cudaStream_t stream) {
  visit_element(type, [&]<typename T>(T*) {
    launch(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(out), rows, d, eps, stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
