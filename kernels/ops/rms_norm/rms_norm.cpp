// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rms_norm/rms_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_rms_norm(const at::Tensor& x, const at::Tensor& weight) {
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && x.size(-1) == weight.size(0),
              "rms_norm: x [..., d] and weight [d] expected, got ", x.sizes(), " and ", weight.sizes());
  check_alike(x, weight, "rms_norm");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor rms_norm_meta(const Tensor& x, const Tensor& weight, double) {
  if (has_plain_sizes(x, weight)) kernels::check_rms_norm(x, weight);
  return at::empty_symint(x.sym_sizes(), x.options());
}

Tensor rms_norm_composed(const Tensor& x, const Tensor& weight, double eps) {
  kernels::check_rms_norm(x, weight);
  const Tensor wide = widened(x);
  const Tensor normed = wide * at::rsqrt(wide.pow(2).mean(-1, true) + eps);
  return normed.to(x.scalar_type()) * weight;
}

Tensor rms_norm_autograd(const Tensor& x, const Tensor& weight, double eps) {
  if (takes_composed_form(x, weight)) return rms_norm_composed(x, weight, eps);
  at::AutoDispatchBelowADInplaceOrView below;
  return rms_norm(x, weight, eps);
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  static const auto op = find_op<decltype(rms_norm_meta)>("rms_norm");
  return op.call(x, weight, eps);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("rms_norm", rms_norm_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("rms_norm", rms_norm_autograd);
}

}  // namespace espalier::ops
