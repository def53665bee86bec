// SPDX-License-Identifier: Apache-2.0
// silu(gate) · up below the dispatcher: the check that every backend makes, and the loops and launchers on raw
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

// Throws unless gate and up have one shape, dtype and device.
void check_silu_mul(const at::Tensor& gate, const at::Tensor& up);

// gate and up as [rows, d] with strides between rows in elements: the halves of a fused gate-up projection need no
// copy.
struct SiluMulShape {
  int64_t rows, d, gate_stride, up_stride;
};

// out[r, i] = gate / (1 + exp(-gate)) · up in float32, rounded once; out [rows, d] contiguous; does rows [begin, end).
template <typename T>
void silu_mul_plain(const T* gate, const T* up, T* out, const SiluMulShape& shape, int64_t begin, int64_t end);
using SiluMulLoop = void(ElementType type, const void* gate, const void* up, void* out, const SiluMulShape& shape,
                         int64_t begin, int64_t end);
namespace avx2 {
SiluMulLoop silu_mul;
}
namespace avx512 {
SiluMulLoop silu_mul;
}

#ifdef ESPALIER_HAS_CUDA
cudaError_t silu_mul_cuda(ElementType type, const void* gate, const void* up, void* out, const SiluMulShape& shape,
                          cudaStream_t stream);
#endif

}  // namespace espalier::kernels
