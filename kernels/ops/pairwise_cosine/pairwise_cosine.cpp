// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/pairwise_cosine/pairwise_cosine.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_pairwise_cosine(const at::Tensor& x, const at::Tensor& y) {
  TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
              "pairwise_cosine: x [n, d] and y [m, d] expected, got ", x.sizes(), " and ", y.sizes());
  check_alike(x, y, "pairwise_cosine");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor pairwise_cosine_meta(const Tensor& x, const Tensor& y) {
  if (has_plain_sizes(x, y)) kernels::check_pairwise_cosine(x, y);
  kernels::element_type(x, "pairwise_cosine");
  return at::empty_symint({x.sym_size(0), y.sym_size(0)}, x.options().dtype(at::kFloat));
}

// Rows of length 1; one that is too short becomes 0 and passes no gradient on.
Tensor unit_rows(const Tensor& x) {
  const Tensor wide = widened(x), square = (wide * wide).sum(1, /*keepdim=*/true);
  const Tensor is_short = square.sqrt() < kernels::kSmallestNorm;
  return (wide * square.masked_fill(is_short, 1.0).rsqrt()).masked_fill(is_short, 0.0);
}

Tensor pairwise_cosine_autograd(const Tensor& x, const Tensor& y) {
  if (takes_composed_form(x, y)) {
    kernels::check_pairwise_cosine(x, y);
    return at::matmul(unit_rows(x), unit_rows(y).t());
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return pairwise_cosine(x, y);
}

}  // namespace

Tensor pairwise_cosine(const Tensor& x, const Tensor& y) {
  static const auto op = find_op<decltype(pairwise_cosine_meta)>("pairwise_cosine");
  return op.call(x, y);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("pairwise_cosine", pairwise_cosine_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("pairwise_cosine", pairwise_cosine_autograd);
}

}  // namespace espalier::ops
