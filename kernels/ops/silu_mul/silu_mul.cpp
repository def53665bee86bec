// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/silu_mul/silu_mul.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  TORCH_CHECK(gate.sizes() == up.sizes(), "silu_mul: gate and up of one shape expected, got ", gate.sizes(), " and ",
              up.sizes());
  check_alike(gate, up, "silu_mul");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor silu_mul_meta(const Tensor& gate, const Tensor& up) {
  if (has_plain_sizes(gate, up)) kernels::check_silu_mul(gate, up);
  return at::empty_symint(gate.sym_sizes(), gate.options());
}

// float32 inside and one rounding, as in the kernels; Transformers rounds silu(gate) too where the model is bf16 or
// f16.
Tensor silu_mul_composed(const Tensor& gate, const Tensor& up) {
  kernels::check_silu_mul(gate, up);
  return (at::silu(widened(gate)) * widened(up)).to(gate.scalar_type());
}

Tensor silu_mul_autograd(const Tensor& gate, const Tensor& up) {
  if (takes_composed_form(gate, up)) return silu_mul_composed(gate, up);
  at::AutoDispatchBelowADInplaceOrView below;
  return silu_mul(gate, up);
}

}  // namespace

Tensor silu_mul(const Tensor& gate, const Tensor& up) {
  static const auto op = find_op<decltype(silu_mul_meta)>("silu_mul");
  return op.call(gate, up);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("silu_mul", silu_mul_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("silu_mul", silu_mul_autograd);
}

}  // namespace espalier::ops
