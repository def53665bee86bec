// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/rsqrt.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/autograd_fallback.h"

namespace espalier::ops {

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("espalier::rms_norm", "")
                             .typed<Tensor(const Tensor&, const Tensor&, double)>();
  TORCH_CHECK(x.dim() >= 1 && weight.dim() == 1 && x.size(-1) == weight.size(0), "rms_norm: x [..., d] and weight [d] expected, got ",
              x.sizes(), " and ", weight.sizes());
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "rms_norm: x and weight must have one dtype, got ", x.scalar_type(),
              " and ", weight.scalar_type());
  return op.call(x, weight, eps);
}

namespace {

Tensor rms_norm_meta(const Tensor& x, const Tensor&, double) { return at::empty_like(x, at::MemoryFormat::Contiguous); }

Tensor rms_norm_composed(const Tensor& x, const Tensor& weight, double eps) {
  const Tensor x32 = x.to(at::kFloat);
  const Tensor normed = x.scalar_type() == at::kDouble ? x * at::rsqrt(x.pow(2).mean(-1, true) + eps)
                                                       : x32 * at::rsqrt(x32.pow(2).mean(-1, true) + eps);
  return normed.to(x.scalar_type()) * weight;
}

Tensor rms_norm_autograd(const Tensor& x, const Tensor& weight, double eps) {
  if (wants_gradient(x, weight)) return rms_norm_composed(x, weight, eps);
  at::AutoDispatchBelowADInplaceOrView below;
  return rms_norm(x, weight, eps);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, Meta, m) { m.impl("rms_norm", rms_norm_meta); }
TORCH_LIBRARY_IMPL(espalier, Autograd, m) { m.impl("rms_norm", rms_norm_autograd); }

}  // namespace espalier::ops
