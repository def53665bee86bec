// SPDX-License-Identifier: Apache-2.0
// When an op on the decoder's path is asked for a gradient, it runs as composed ATen operators, whose derivatives are
// the library's own. Otherwise it goes on to its kernel. Included by the x.cpp of those ops only.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <optional>

namespace espalier::ops {

inline bool asks_gradient(const at::Tensor& t) {
  return t.defined() && t.requires_grad();
}
inline bool asks_gradient(const std::optional<at::Tensor>& t) {
  return t.has_value() && asks_gradient(*t);
}

// True when gradients are being recorded and one of the inputs wants one.
template <typename... Tensors>
bool wants_gradient(const Tensors&... tensors) {
  return c10::GradMode::is_enabled() && (asks_gradient(tensors) || ...);
}

// float64 has no kernels: with or without a gradient it runs composed (finite differences need it).
template <typename First, typename... Rest>
bool takes_composed_form(const First& first, const Rest&... rest) {
  return first.scalar_type() == at::kDouble || wants_gradient(first, rest...);
}

// The dtype in which composed forms compute, as the kernels do: float32, or float64 where the input has it.
inline at::Tensor widened(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat);
}

}  // namespace espalier::ops
