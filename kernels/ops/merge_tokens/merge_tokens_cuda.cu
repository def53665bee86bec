// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_tokens/merge_tokens.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/rows.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// A block a group; every thread sums its packs of N elements over the group's rows, in the order of `index`. Reads each
// row of a group once and writes its mean. Rows must be aligned to packs.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    merge_tokens_kernel(const T* __restrict__ x, MergeGroups groups, T* __restrict__ out, MergeShape shape,
                        int64_t num_rows, int64_t num_indices) {
  const int64_t begin = groups.group_begin[blockIdx.x], end = groups.group_begin[blockIdx.x + 1];
  require_row(begin, num_indices + 1);
  require_row(end, num_indices + 1);
  for (int64_t i = threadIdx.x * N; i < shape.d; i += kThreads * N) {
    float sum[N] = {}, total = 0.0F;
    for (int64_t j = begin; j < end; ++j) {
      const int64_t row = groups.index[j];
      require_row(row, num_rows);
      const float weight = groups.weight == nullptr ? 1.0F : groups.weight[j];
      const Pack<T, N> pack = load_pack<N>(x + row * shape.stride + i);
      total += weight;
      for (int k = 0; k < N; ++k) sum[k] += weight * to_float(pack.values[k]);
    }
    Pack<T, N> mean;
    for (int k = 0; k < N; ++k) mean.values[k] = from_float<T>(total == 0.0F ? 0.0F : sum[k] / total);
    store_pack(out + blockIdx.x * shape.d + i, mean);
  }
}

template <typename T>
void launch(const T* x, const MergeGroups& groups, T* out, const MergeShape& shape, int64_t num_rows,
            int64_t num_indices, int64_t num_groups, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(num_groups);
  if (extents_fit_packs<T>(shape.d, shape.stride) && pointers_fit_packs(x, out))
    merge_tokens_kernel<T, kPackSize<T>><<<blocks, kThreads, 0, stream>>>(x, groups, out, shape, num_rows, num_indices);
  else
    merge_tokens_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(x, groups, out, shape, num_rows, num_indices);
}

}  // namespace

cudaError_t merge_tokens_cuda(ElementType type, const void* x, const MergeGroups& groups, void* out,
                              const MergeShape& shape, int64_t num_rows, int64_t num_indices, int64_t num_groups,
                              cudaStream_t stream) {
  if (num_groups == 0 || shape.d == 0) return cudaSuccess;
  visit_element(type, [&]<typename T>(T*) {
    launch(static_cast<const T*>(x), groups, static_cast<T*>(out), shape, num_rows, num_indices, num_groups, stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
