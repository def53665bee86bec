// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/autograd_fallback.h"
#include "kernels/meta_shapes.h"
#include "kernels/tensor_checks.h"

namespace espalier::kernels {

void check_linear(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 2 && x.size(-1) == weight.size(1),
              "linear: x [..., in] and weight [out, in] expected, got ", x.sizes(), " and ", weight.sizes());
  check_alike(x, weight, "linear");
}

}  // namespace espalier::kernels

namespace espalier::ops {

Tensor linear(const Tensor& x, const Tensor& weight) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("espalier::linear", "")
                             .typed<Tensor(const Tensor&, const Tensor&)>();
  return op.call(x, weight);
}

namespace {

Tensor linear_meta(const Tensor& x, const Tensor& weight) {
  if (has_plain_sizes(x, weight)) kernels::check_linear(x, weight);
  auto shape = x.sym_sizes().vec();
  shape.back() = weight.sym_size(0);
  return at::empty_symint(shape, x.options());
}

Tensor linear_autograd(const Tensor& x, const Tensor& weight) {
  if (takes_composed_form(x, weight)) {
    kernels::check_linear(x, weight);
    return at::linear(x, weight);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return ops::linear(x, weight);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("linear", linear_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("linear", linear_autograd);
}

}  // namespace espalier::ops
