// SPDX-License-Identifier: Apache-2.0
// When an op on the decoder's path is asked for a gradient, it runs as composed ATen operators, whose derivatives are the library's own.
// Otherwise it goes on to its kernel. Included by the x.cpp of those ops only.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <optional>

namespace espalier::ops {

inline bool asks_gradient(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
inline bool asks_gradient(const std::optional<at::Tensor>& t) { return t.has_value() && asks_gradient(*t); }

// True when gradients are being recorded and one of the inputs wants one. float64 has no kernels: it always runs composed (the tests'
// finite differences need it).
template <typename First, typename... Rest>
bool wants_gradient(const First& first, const Rest&... rest) {
  return c10::GradMode::is_enabled() && (asks_gradient(first) || (asks_gradient(rest) || ...));
}

}  // namespace espalier::ops
