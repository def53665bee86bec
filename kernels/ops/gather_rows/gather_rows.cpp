// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/gather_rows/gather_rows.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_gather_rows(const at::Tensor& x, const at::Tensor& index) {
  TORCH_CHECK(x.dim() >= 1, "gather_rows: x [n, ...] expected, got ", x.sizes());
  TORCH_CHECK(index.dim() == 1, "gather_rows: index [k] expected, got ", index.sizes());
  check_index(index, x, "gather_rows");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor gather_rows_meta(const Tensor& x, const Tensor& index) {
  if (has_plain_sizes(x, index)) kernels::check_gather_rows(x, index);
  auto sizes = x.sym_sizes().vec();
  sizes[0] = index.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

Tensor gather_rows_autograd(const Tensor& x, const Tensor& index) {
  if (wants_gradient(x)) {
    kernels::check_gather_rows(x, index);
    return at::index_select(x, 0, index);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return gather_rows(x, index);
}

}  // namespace

Tensor gather_rows(const Tensor& x, const Tensor& index) {
  static const auto op = find_op<decltype(gather_rows_meta)>("gather_rows");
  return op.call(x, index);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("gather_rows", gather_rows_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("gather_rows", gather_rows_autograd);
}

}  // namespace espalier::ops
