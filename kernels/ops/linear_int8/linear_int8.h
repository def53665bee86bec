// SPDX-License-Identifier: Apache-2.0
// A linear layer whose weight is int8 with one scale per output, below the dispatcher. Few rows (decoding) read the
// weight once, at one byte per element; for many rows it is widened piece by piece for the library's product of
// matrices.
#pragma once

#include <cstdint>

#include "kernels/ops/linear/linear.h"
#include "kernels/support/element_type.h"

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless x [..., d], weight int8 [out, d] and scale float32 [out] fit on one device.
void check_linear_int8(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale);

// x · (weight · scale) with the weight widened to x's dtype, some outputs at a time: what the library multiplies.
at::Tensor linear_int8_widened(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale);

// out[r, o] = scale[o] · sum_i x[r, i] · weight[o, i] in float32, rounded once, for outputs [begin, end). All
// contiguous.
template <typename T>
void linear_int8_plain(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape,
                       int64_t begin, int64_t end);
// rows <= kFewRows.
using LinearInt8RowsLoop = void(ElementType type, const void* x, const int8_t* weight, const float* scale, void* out,
                                const LinearShape& shape, int64_t begin, int64_t end);
namespace avx2 {
LinearInt8RowsLoop linear_int8_rows;
}
namespace avx512 {
LinearInt8RowsLoop linear_int8_rows;
}

#ifdef ESPALIER_HAS_CUDA
// rows <= kFewRows; one warp per output.
cudaError_t linear_int8_cuda(ElementType type, const void* x, const int8_t* weight, const float* scale, void* out,
                             const LinearShape& shape, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
