// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_tokens/merge_tokens_arguments.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_merge_tokens(const at::Tensor& x, const at::Tensor& index, const at::Tensor& group_begin,
                        const std::optional<at::Tensor>& weight) {
  TORCH_CHECK(x.dim() == 2 && x.is_floating_point(), "merge_tokens: x [n, d] of a floating dtype expected, got ",
              x.scalar_type(), " ", x.sizes());
  TORCH_CHECK(index.dim() == 1, "merge_tokens: index [r] expected, got ", index.sizes());
  check_index(index, x, "merge_tokens");
  TORCH_CHECK(group_begin.dim() == 1 && group_begin.size(0) >= 1 && group_begin.scalar_type() == at::kLong &&
                  group_begin.device() == x.device(),
              "merge_tokens: group_begin int64 [k + 1] on ", x.device(), " expected, got ", group_begin.scalar_type(),
              " ", group_begin.sizes(), " on ", group_begin.device());
  if (!weight.has_value() || !weight->defined()) return;
  const at::ScalarType wanted = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK(weight->sizes() == index.sizes() && weight->scalar_type() == wanted && weight->device() == x.device(),
              "merge_tokens: weight ", wanted, " ", index.sizes(), " on ", x.device(), " expected, got ",
              weight->scalar_type(), " ", weight->sizes(), " on ", weight->device());
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor merge_tokens_meta(const Tensor& x, const Tensor& index, const Tensor& group_begin,
                         const OptionalTensor& weight) {
  if (has_plain_sizes(x, index, group_begin, weight)) kernels::check_merge_tokens(x, index, group_begin, weight);
  return at::empty_symint({group_begin.sym_size(0) - 1, x.sym_size(1)}, x.options());
}

// Rows before the first group and behind the last go to a group of their own, which is cut off again.
Tensor composed(const Tensor& x, const Tensor& index, const Tensor& group_begin, const OptionalTensor& weight) {
  const int64_t k = group_begin.size(0) - 1;
  const Tensor rows = widened(x.index_select(0, index)), place = at::arange(index.size(0), index.options());
  const Tensor below =
      at::searchsorted(group_begin, place, /*out_int32=*/false, /*right=*/true);  // 0: before the first
  const Tensor group = at::where(below == 0, below + k, below - 1);
  const Tensor w = weight.has_value() && weight->defined() ? *weight : at::ones({index.size(0)}, rows.options());
  const Tensor sum = at::zeros({k + 1, x.size(1)}, rows.options()).index_add(0, group, rows * w.unsqueeze(1));
  const Tensor total = at::zeros({k + 1}, rows.options()).index_add(0, group, w).unsqueeze(1);
  const Tensor is_empty = total == 0;
  const Tensor mean = at::where(is_empty, at::zeros_like(sum), sum / total.masked_fill(is_empty, 1.0));
  return mean.slice(0, 0, k).to(x.scalar_type());
}

Tensor merge_tokens_autograd(const Tensor& x, const Tensor& index, const Tensor& group_begin,
                             const OptionalTensor& weight) {
  if (takes_composed_form(x, weight)) {
    kernels::check_merge_tokens(x, index, group_begin, weight);
    return composed(x, index, group_begin, weight);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return merge_tokens(x, index, group_begin, weight);
}

}  // namespace

Tensor merge_tokens(const Tensor& x, const Tensor& index, const Tensor& group_begin, const OptionalTensor& weight) {
  static const auto op = find_op<decltype(merge_tokens_meta)>("merge_tokens");
  return op.call(x, index, group_begin, weight);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("merge_tokens", merge_tokens_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("merge_tokens", merge_tokens_autograd);
}

}  // namespace espalier::ops
