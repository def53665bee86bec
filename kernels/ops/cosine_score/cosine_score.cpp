// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/cosine_score/cosine_score_arguments.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"

namespace espalier::kernels {

void check_cosine_score(const at::Tensor& x, const at::Tensor& direction, const std::optional<at::Tensor>& index) {
  TORCH_CHECK(x.dim() == 2 && direction.dim() == 2 && x.size(1) == direction.size(1),
              "cosine_score: x [n, d] and direction [v, d] expected, got ", x.sizes(), " and ", direction.sizes());
  TORCH_CHECK(direction.is_floating_point() && direction.device() == x.device(),
              "cosine_score: direction must be floating on ", x.device(), ", got ", direction.scalar_type(), " on ",
              direction.device());
  element_type(x, "cosine_score");
  if (!index.has_value() || !index->defined()) return;
  TORCH_CHECK(index->dim() == 1 && index->scalar_type() == at::kLong && index->device() == x.device(),
              "cosine_score: index int64 [c] on ", x.device(), " expected, got ", index->scalar_type(), " ",
              index->sizes(), " on ", index->device());
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor cosine_score_meta(const Tensor& x, const Tensor& direction, const OptionalTensor& index) {
  if (has_plain_sizes(x, direction, index)) kernels::check_cosine_score(x, direction, index);
  const c10::SymInt count = index.has_value() && index->defined() ? index->sym_size(0) : x.sym_size(0);
  return at::empty_symint({direction.sym_size(0), count}, x.options().dtype(at::kFloat));
}

}  // namespace

Tensor cosine_score(const Tensor& x, const Tensor& direction, const OptionalTensor& index) {
  static const auto op = find_op<decltype(cosine_score_meta)>("cosine_score");
  return op.call(x, direction, index);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("cosine_score", cosine_score_meta);
}

}  // namespace espalier::ops
