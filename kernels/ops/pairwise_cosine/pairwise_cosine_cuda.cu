// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/ops/pairwise_cosine/pairwise_cosine.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// A block a row, summed always in the same order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    inverse_norm_kernel(const T* __restrict__ x, int64_t stride, int64_t d, float* __restrict__ inverse_norm) {
  const T* row = x + blockIdx.x * stride;
  float square = 0.0F;
  for (int64_t i = threadIdx.x; i < d; i += kThreads) {
    const float value = to_float(row[i]);
    square += value * value;
  }
  const float norm = sqrtf(block_sum(square));
  if (threadIdx.x == 0) inverse_norm[blockIdx.x] = norm < kSmallestNorm ? 0.0F : 1.0F / norm;
}

// A block a row of products, read and written once.
__global__ void __launch_bounds__(kThreads)
    scale_products_kernel(float* __restrict__ products, const float* __restrict__ x_inverse_norm,
                          const float* __restrict__ y_inverse_norm, int64_t m) {
  const float a = x_inverse_norm[blockIdx.x];
  float* row = products + blockIdx.x * m;
  for (int64_t j = threadIdx.x; j < m; j += kThreads) {
    const float b = y_inverse_norm[j], cosine = row[j] * a * b;
    // Written so that a NaN stays one.
    row[j] = a == 0.0F || b == 0.0F ? 0.0F : cosine > 1.0F ? 1.0F : cosine < -1.0F ? -1.0F : cosine;
  }
}

}  // namespace

cudaError_t inverse_norms_cuda(const Rows& rows, float* inverse_norm, cudaStream_t stream) {
  if (rows.n == 0) return cudaSuccess;
  visit_element(rows.features.type, [&]<typename T>(T*) {
    inverse_norm_kernel<<<static_cast<unsigned>(rows.n), kThreads, 0, stream>>>(
        static_cast<const T*>(rows.features.data), rows.features.stride, rows.features.d, inverse_norm);
  });
  return cudaGetLastError();
}

cudaError_t scale_products_cuda(float* products, const float* x_inverse_norm, const float* y_inverse_norm, int64_t n,
                                int64_t m, cudaStream_t stream) {
  if (n == 0 || m == 0) return cudaSuccess;
  scale_products_kernel<<<static_cast<unsigned>(n), kThreads, 0, stream>>>(products, x_inverse_norm, y_inverse_norm, m);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
