// SPDX-License-Identifier: Apache-2.0
// A linear layer on few rows below the dispatcher: the check that every backend makes and the loops on raw pointers.
// With many rows a product of matrices is the library's business; with one to eight it is bound by reading the weight,
// once.
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/support/element_type.h"

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Rows up to which reading the weight decides, so that our loops beat the library's product.
inline constexpr int64_t kFewRows = 8;

// Throws unless x [..., d], weight [out, d] and bias [out], where there is one, fit and have one dtype and device.
void check_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

// Whether the library's product of matrices has instructions for x's dtype where x is. On a CPU without them it is many
// times slower than in float32.
bool library_multiplies(const at::Tensor& x);

// The library's product in float32, rounded once: x and weight are widened, and gradients with them.
at::Tensor linear_widened(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias);

struct LinearShape {
  int64_t rows, in, out;
};

// out[r, o] = sum_i x[r, i] · weight[o, i] in float32, rounded once, for outputs [begin, end). All contiguous.
template <typename T>
void linear_plain(const T* x, const T* weight, T* out, const LinearShape& shape, int64_t begin, int64_t end);
// rows <= kFewRows. With FMA; bf16 with AVX-512's dot-product instruction.
using LinearRowsLoop = void(ElementType type, const void* x, const void* weight, void* out, const LinearShape& shape,
                            int64_t begin, int64_t end);
namespace avx2 {
LinearRowsLoop linear_rows;
}
namespace avx512 {
LinearRowsLoop linear_rows;
}

}  // namespace espalier::kernels
