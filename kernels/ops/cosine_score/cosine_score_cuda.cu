// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/support/cuda/row_products.cuh"

namespace espalier::kernels {
namespace {

// One warp per row; with several directions the row comes from the level 1 cache again.
template <typename T>
__global__ void __launch_bounds__(kColumnWarps* kWarpSize)
    cosine_kernel(const T* x, int64_t stride, const float* direction, const int64_t* index, int64_t count,
                  int64_t num_directions, int64_t d, float* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kColumnWarps + threadIdx.x / kWarpSize;
  if (i >= count) return;
  const T* row = x + (index == nullptr ? i : index[i]) * stride;
  for (int64_t v = 0; v < num_directions; ++v) {
    const float cosine = warp_cosine(row, direction + v * d, d);
    if (threadIdx.x % kWarpSize == 0) out[v * count + i] = cosine;
  }
}

}  // namespace

cudaError_t cosine_score_cuda(const void* x, int64_t stride, ElementType type, const float* direction,
                              const int64_t* index, int64_t count, int64_t num_directions, int64_t d, float* out,
                              cudaStream_t stream) {
  if (count == 0 || num_directions == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>((count + kColumnWarps - 1) / kColumnWarps);
  visit_element(type, [&]<typename T>(T*) {
    cosine_kernel<<<grid, kColumnWarps * kWarpSize, 0, stream>>>(static_cast<const T*>(x), stride, direction, index,
                                                                 count, num_directions, d, out);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
