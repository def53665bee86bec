// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/compact_kv/compact_kv.h"
#include "kernels/support/cuda/rows.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

// A block a kept token; its threads copy unit by unit, head by head. Reads and writes the kept bytes once. shape's
// extents in units.
template <typename Unit>
__global__ void __launch_bounds__(kThreads)
    compact_kv_kernel(const Unit* __restrict__ x, const int64_t* __restrict__ index, Unit* __restrict__ out,
                      KvShape shape, int64_t num_rows) {
  const int64_t token = blockIdx.x;
  const auto width = static_cast<unsigned>(shape.d_bytes);  // 32 bits: divisions by 64 cost more than the copy
  const auto token_width = static_cast<unsigned>(shape.heads) * width;
  for (unsigned i = threadIdx.x; i < token_width; i += kThreads) {
    const int64_t h = i / width;
    const int64_t row = index[h * shape.index_stride + token];
    require_row(row, num_rows);
    out[token * token_width + i] = x[row * shape.token_stride + h * shape.head_stride + i % width];
  }
}

}  // namespace

cudaError_t compact_kv_cuda(const void* x, const int64_t* index, void* out, const KvShape& shape, int64_t num_rows,
                            cudaStream_t stream) {
  const uint64_t alignment = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(out) |
                             static_cast<uint64_t>(shape.d_bytes) | static_cast<uint64_t>(shape.token_stride) |
                             static_cast<uint64_t>(shape.head_stride);
  visit_copy_unit(alignment, [&]<typename Unit>(Unit*) {
    constexpr int64_t kSize = sizeof(Unit);
    KvShape units = shape;
    units.d_bytes /= kSize;
    units.token_stride /= kSize;
    units.head_stride /= kSize;
    compact_kv_kernel<<<static_cast<unsigned>(shape.num_kept), kThreads, 0, stream>>>(
        static_cast<const Unit*>(x), index, static_cast<Unit*>(out), units, num_rows);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
