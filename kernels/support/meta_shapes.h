// SPDX-License-Identifier: Apache-2.0
// For Meta kernels, which tracing and compiling programs call: sizes may be symbols there, which can be passed on but
// not compared, so an op's checks run only where they are numbers. Included by the x.cpp of ops only.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace espalier::ops {

inline bool has_plain_sizes(const at::Tensor& t) {
  return !t.defined() || !t.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
}
inline bool has_plain_sizes(const std::optional<at::Tensor>& t) {
  return !t.has_value() || has_plain_sizes(*t);
}
template <typename... Tensors>
requires(sizeof...(Tensors) > 1) bool has_plain_sizes(const Tensors&... tensors) {
  return (has_plain_sizes(tensors) && ...);
}

}  // namespace espalier::ops
