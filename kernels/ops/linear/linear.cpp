// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear/linear.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "linear: x [..., in] and weight [out, in] expected, got ", x.sizes(), " and ", weight.sizes());
  check_alike(x, weight, "linear");
  if (!bias.has_value() || !bias->defined()) return;
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0), "linear: bias [", weight.size(0), "] expected, got ",
              bias->sizes());
  check_alike(x, *bias, "linear");
}

at::Tensor linear_widened(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const auto wide = [](const at::Tensor& t) { return t.to(at::kFloat); };
  const bool has_bias = bias.has_value() && bias->defined();
  return at::linear(wide(x), wide(weight), has_bias ? std::optional(wide(*bias)) : std::nullopt).to(x.scalar_type());
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor linear_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  if (has_plain_sizes(x, weight, bias)) kernels::check_linear(x, weight, bias);
  auto shape = x.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  return at::empty_symint(shape, x.options());
}

Tensor linear_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  if (takes_composed_form(x, weight, bias)) {
    kernels::check_linear(x, weight, bias);
    return kernels::library_multiplies(x) ? at::linear(x, weight, bias) : kernels::linear_widened(x, weight, bias);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::linear(x, weight, bias);
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  static const auto op = find_op<decltype(linear_meta)>("linear");
  return op.call(x, weight, bias);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("linear", linear_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("linear", linear_autograd);
}

}  // namespace espalier::ops
