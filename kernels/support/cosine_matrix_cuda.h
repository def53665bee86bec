// SPDX-License-Identifier: Apache-2.0
// kernels::cosine_matrix on the device, by the library's matrix product.
#pragma once

#include <ATen/core/Tensor.h>

namespace espalier::kernels {

// x float32 [size, d] -> float32 [size, size]; the caller has ruled TF32 out, which rounds features to 10 bits.
at::Tensor cosine_matrix_cuda(const at::Tensor& x);

}  // namespace espalier::kernels
