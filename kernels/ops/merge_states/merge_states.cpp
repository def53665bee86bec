// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_states/merge_states.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/maximum.h>
#include <torch/library.h>

#include <limits>

#include "espalier/ops.h"
#include "kernels/ops/merge_states/merge_states_arguments.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_merge_states(const at::Tensor& output_a, const at::Tensor& lse_a, const at::Tensor& output_b,
                        const at::Tensor& lse_b) {
  TORCH_CHECK(output_a.dim() == 3 && output_a.sizes() == output_b.sizes(),
              "merge_states: outputs of one shape [n, h, d] expected, got ", output_a.sizes(), " and ",
              output_b.sizes());
  check_alike(output_a, output_b, "merge_states");
  const bool is_wide = output_a.scalar_type() == at::kDouble;
  if (!is_wide) element_type(output_a, "merge_states");
  for (const at::Tensor* lse : {&lse_a, &lse_b})
    TORCH_CHECK(lse->dim() == 2 && lse->size(0) == output_a.size(1) && lse->size(1) == output_a.size(0) &&
                    lse->scalar_type() == (is_wide ? at::kDouble : at::kFloat) && lse->device() == output_a.device(),
                "merge_states: lse ", is_wide ? "float64" : "float32", " [", output_a.size(1), ", ", output_a.size(0),
                "] on ", output_a.device(), " expected, got ", lse->scalar_type(), " ", lse->sizes(), " on ",
                lse->device());
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor with_dense_heads(const Tensor& lse) {
  return lse.stride(1) == 1 || lse.size(1) == 1 ? lse : lse.contiguous();
}

}  // namespace

MergeStatesTensors::MergeStatesTensors(const Tensor& output_a_in, const Tensor& lse_a_in, const Tensor& output_b_in,
                                       const Tensor& lse_b_in) {
  kernels::check_merge_states(output_a_in, lse_a_in, output_b_in, lse_b_in);
  output_a = output_a_in.contiguous();
  output_b = output_b_in.contiguous();
  lse_a = with_dense_heads(lse_a_in);
  lse_b = with_dense_heads(lse_b_in);
  output = at::empty(output_a.sizes(), output_a.options());
  lse = at::empty(lse_a.sizes(), lse_a.options());
  problem = {.a = {output_a.const_data_ptr(), lse_a.const_data_ptr<float>(), lse_a.stride(0)},
             .b = {output_b.const_data_ptr(), lse_b.const_data_ptr<float>(), lse_b.stride(0)},
             .output = output.mutable_data_ptr(),
             .lse = lse.mutable_data_ptr<float>(),
             .num_rows = output_a.size(0),
             .num_heads = output_a.size(1),
             .head_dim = output_a.size(2),
             .type = kernels::element_type(output_a, "merge_states")};
}

namespace {

std::tuple<Tensor, Tensor> merge_states_meta(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                             const Tensor& lse_b) {
  if (has_plain_sizes(output_a, lse_a, output_b, lse_b)) kernels::check_merge_states(output_a, lse_a, output_b, lse_b);
  return {at::empty_symint(output_a.sym_sizes(), output_a.options()),
          at::empty_symint(lse_a.sym_sizes(), lse_a.options())};
}

// Places where a part counts nothing are filled before anything is computed from them: its output may hold anything,
// and the gradient of -inf - -inf would be none.
std::tuple<Tensor, Tensor> merge_states_composed(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                                 const Tensor& lse_b) {
  kernels::check_merge_states(output_a, lse_a, output_b, lse_b);
  const double minus_infinity = -std::numeric_limits<double>::infinity();
  const Tensor peak = at::maximum(lse_a.detach(), lse_b.detach());
  const Tensor is_empty = peak == minus_infinity;
  const Tensor base = peak.masked_fill(is_empty, 0.0);
  const auto weight = [&](const Tensor& lse) {
    const Tensor counts_nothing = lse == minus_infinity;
    return at::exp(lse.masked_fill(counts_nothing, 0.0) - base).masked_fill(counts_nothing, 0.0);
  };
  const Tensor weight_a = weight(lse_a), weight_b = weight(lse_b);
  const Tensor total = (weight_a + weight_b).masked_fill(is_empty, 1.0);
  const auto share = [&](const Tensor& output, const Tensor& part) {
    const Tensor by_row = (part / total).t().unsqueeze(-1);  // [n, h, 1]
    return widened(output).masked_fill(by_row == 0, 0.0) * by_row;
  };
  return {(share(output_a, weight_a) + share(output_b, weight_b)).to(output_a.scalar_type()),
          (base + at::log(total)).masked_fill(is_empty, minus_infinity)};
}

std::tuple<Tensor, Tensor> merge_states_autograd(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                                 const Tensor& lse_b) {
  if (takes_composed_form(output_a, lse_a, output_b, lse_b))
    return merge_states_composed(output_a, lse_a, output_b, lse_b);
  at::AutoDispatchBelowADInplaceOrView below;
  return merge_states(output_a, lse_a, output_b, lse_b);
}

}  // namespace

std::tuple<Tensor, Tensor> merge_states(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                        const Tensor& lse_b) {
  static const auto op = find_op<decltype(merge_states_meta)>("merge_states");
  return op.call(output_a, lse_a, output_b, lse_b);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("merge_states", merge_states_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("merge_states", merge_states_autograd);
}

}  // namespace espalier::ops
