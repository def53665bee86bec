// SPDX-License-Identifier: Apache-2.0
// A linear layer on few rows below the dispatcher: the check that every backend makes and the loops on raw pointers.
// With many rows a product of matrices is the library's business; with one to eight it is bound by reading the weight,
// once.
#pragma once

#include <cstdint>

#include "kernels/element_type.h"

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Rows up to which reading the weight decides, so that our loops beat the library's product.
inline constexpr int64_t kFewRows = 8;

// Throws unless x [..., d] and weight [out, d] fit and have one dtype and device.
void check_linear(const at::Tensor& x, const at::Tensor& weight);

struct LinearShape {
  int64_t rows, in, out;
};

// out[r, o] = sum_i x[r, i] · weight[o, i] in float32, rounded once, for outputs [begin, end). All contiguous.
template <typename T>
void linear_plain(const T* x, const T* weight, T* out, const LinearShape& shape, int64_t begin, int64_t end);
// rows <= kFewRows. bf16 with the dot-product instruction, f32 and f16 with FMA.
void linear_avx512(ElementType type, const void* x, const void* weight, void* out, const LinearShape& shape,
                   int64_t begin, int64_t end);

}  // namespace espalier::kernels
