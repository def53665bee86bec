// SPDX-License-Identifier: Apache-2.0
// Questions that every op asks its tensors before it takes raw pointers. Torch side only; `op` is the op's name, which
// opens the message.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/support/element_type.h"

namespace espalier::kernels {

inline ElementType element_type(const at::Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return ElementType::kFloat32;
    case at::kBFloat16:
      return ElementType::kBFloat16;
    case at::kHalf:
      return ElementType::kFloat16;
    default:
      TORCH_CHECK(false, op, ": float32, bfloat16 or float16 expected, got ", t.scalar_type());
  }
}

// Calls f with a zero of t's element type: `[&]<typename T>(T)`.
template <typename F>
void visit_element_type(const at::Tensor& t, const char* op, F&& f) {
  switch (element_type(t, op)) {
    case ElementType::kFloat32:
      return f(float{});
    case ElementType::kBFloat16:
      return f(c10::BFloat16{});
    case ElementType::kFloat16:
      return f(c10::Half{});
  }
}

// Same dtype and device as `first`: kernels read raw pointers, and the dispatcher picks one device for a mixed call.
inline void check_alike(const at::Tensor& first, const at::Tensor& other, const char* op) {
  TORCH_CHECK(first.scalar_type() == other.scalar_type(), op, ": one dtype expected, got ", first.scalar_type(),
              " and ", other.scalar_type());
  TORCH_CHECK(first.device() == other.device(), op, ": one device expected, got ", first.device(), " and ",
              other.device());
}

// int64, on the device of `rows`, whose rows it names. Values are not looked at: they may be on a GPU.
inline void check_index(const at::Tensor& index, const at::Tensor& rows, const char* op) {
  TORCH_CHECK(index.scalar_type() == at::kLong, op, ": index must be int64, got ", index.scalar_type());
  TORCH_CHECK(index.device() == rows.device(), op, ": index must be on ", rows.device(), ", got ", index.device());
}

// Of an index on the CPU: the first value outside [0, n) is an error.
inline void check_index_range(const int64_t* index, int64_t count, int64_t n, const char* op) {
  for (int64_t i = 0; i < count; ++i)
    TORCH_CHECK_INDEX(index[i] >= 0 && index[i] < n, op, ": index ", index[i], " (element ", i, ") is not a row of 0..",
                      n - 1, " (", n, " rows)");
}

}  // namespace espalier::kernels
