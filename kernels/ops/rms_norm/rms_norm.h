// SPDX-License-Identifier: Apache-2.0
// RMS norm below the dispatcher: the check that every backend makes, and the loops and launchers on raw pointers.
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

// Throws unless x is [..., d], weight [d], of one dtype and device. Each backend calls it: with inference tensors the
// dispatcher goes straight to the backend, past anything that stands before it.
void check_rms_norm(const at::Tensor& x, const at::Tensor& weight);

// out[r, i] = T(x[r, i] / sqrt(mean_i x² + eps)) · weight[i] for rows r in [begin, end); x and out [rows, d]
// contiguous. The cast before the weight is the models' own. The plain loops are the reference and the path of CPUs
// without AVX2.
template <typename T>
void rms_norm_plain(const T* x, const T* weight, T* out, int64_t begin, int64_t end, int64_t d, float eps);
using RmsNormLoop = void(ElementType type, const void* x, const void* weight, void* out, int64_t begin, int64_t end,
                         int64_t d, float eps);
namespace avx2 {
RmsNormLoop rms_norm;
}
namespace avx512 {
RmsNormLoop rms_norm;
}

#ifdef ESPALIER_HAS_CUDA
cudaError_t rms_norm_cuda(ElementType type, const void* x, const void* weight, void* out, int64_t rows, int64_t d,
                          float eps, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
