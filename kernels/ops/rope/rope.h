// SPDX-License-Identifier: Apache-2.0
// Rotary embedding below the dispatcher: the check that every backend makes, and the loops and launchers on raw
// pointers.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "kernels/support/element_type.h"

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless query is [n, h, d], key [n, g, d], cos and sin [n, d] with d even, all of one dtype and device.
void check_rope(const at::Tensor& query, const at::Tensor& key, const at::Tensor& cos, const at::Tensor& sin);

// A query or key [tokens, heads, d] whose rows of d are contiguous; strides in elements (a slice of a fused projection
// is fine).
struct RopeShape {
  int64_t tokens, heads, d, token_stride, head_stride;
};

// out[t, h, i]       = x[t, h, i] · cos[t, i] - x[t, h, i + d/2] · sin[t, i]               for i < d/2
// out[t, h, i + d/2] = x[t, h, i + d/2] · cos[t, i + d/2] + x[t, h, i] · sin[t, i + d/2]
// in float32, rounded once. cos, sin [tokens, d] and out [tokens, heads, d] contiguous; does tokens [begin, end).
template <typename T>
void rope_plain(const T* x, const T* cos, const T* sin, T* out, const RopeShape& shape, int64_t begin, int64_t end);
using RopeLoop = void(ElementType type, const void* x, const void* cos, const void* sin, void* out,
                      const RopeShape& shape, int64_t begin, int64_t end);
namespace avx2 {
RopeLoop rope;
}
namespace avx512 {
RopeLoop rope;
}

#ifdef ESPALIER_HAS_CUDA
// Query and key in one launch.
cudaError_t rope_cuda(ElementType type, const void* query, const RopeShape& query_shape, void* query_out,
                      const void* key, const RopeShape& key_shape, void* key_out, const void* cos, const void* sin,
                      cudaStream_t stream);
#endif

}  // namespace espalier::kernels
