// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/gather_rows/gather_rows.h"
#include "kernels/support/cuda/rows.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// A block a row of the result; its threads copy unit by unit. Reads and writes the gathered bytes once.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    gather_rows_kernel(const Unit* __restrict__ x, const int64_t* __restrict__ index, Unit* __restrict__ out,
                       int64_t units, int64_t stride, int64_t num_rows) {
  const int64_t row = index[blockIdx.x];
  require_row(row, num_rows);
  for (int64_t i = threadIdx.x; i < units; i += kThreads) out[blockIdx.x * units + i] = x[row * stride + i];
}

}  // namespace

cudaError_t gather_rows_cuda(const void* x, const int64_t* index, void* out, const RowBytes& rows, int64_t num_rows,
                             int64_t num_kept, cudaStream_t stream) {
  const uint64_t alignment = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out) |
                             static_cast<uint64_t>(rows.row_bytes) | static_cast<uint64_t>(rows.row_stride);
  visit_copy_unit(alignment, [&]<typename Unit>(Unit*) {
    constexpr int64_t kSize = sizeof(Unit);
    gather_rows_kernel<<<static_cast<unsigned>(num_kept), kThreads, 0, stream>>>(
        static_cast<const Unit*>(x), index, static_cast<Unit*>(out), rows.row_bytes / kSize, rows.row_stride / kSize,
        num_rows);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
