// SPDX-License-Identifier: Apache-2.0
// Compacting a layer's key-value cache below the dispatcher: the check that every backend makes, and the loops and
// launchers on raw pointers. Rows are bytes: every dtype works.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless key and value are [n, g, d] of one shape, dtype and device, and index int64 [k] or [g, k] on that
// device.
void check_compact_kv(const at::Tensor& key, const at::Tensor& value, const at::Tensor& index);

// A key or value [n, heads, d] whose d are contiguous; strides in bytes. index_stride: from one head's choice to the
// next, 0 where all heads share one.
struct KvShape {
  int64_t num_kept, heads, d_bytes, token_stride, head_stride, index_stride;
};

// out[i, h] = x[index[h · index_stride + i], h] for i in [begin, end); out [num_kept, heads, d] contiguous.
void compact_kv_plain(const void* x, const int64_t* index, void* out, const KvShape& shape, int64_t begin, int64_t end);

#ifdef ESPALIER_HAS_CUDA
// x has num_rows; an index outside them ends in a device-side assertion.
cudaError_t compact_kv_cuda(const void* x, const int64_t* index, void* out, const KvShape& shape, int64_t num_rows,
                            cudaStream_t stream);
#endif

}  // namespace espalier::kernels
