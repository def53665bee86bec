// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/autograd_fallback.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_rope(const at::Tensor& query, const at::Tensor& key, const at::Tensor& cos, const at::Tensor& sin) {
  TORCH_CHECK(query.dim() == 3 && key.dim() == 3 && query.size(0) == key.size(0) && query.size(2) == key.size(2),
              "rope: query [n, h, d] and key [n, g, d] expected, got ", query.sizes(), " and ", key.sizes());
  TORCH_CHECK(query.size(2) % 2 == 0, "rope: an even head width expected, got ", query.size(2));
  for (const at::Tensor* table : {&cos, &sin})
    TORCH_CHECK(table->dim() == 2 && table->size(0) == query.size(0) && table->size(1) == query.size(2),
                "rope: cos and sin [n, d] = [", query.size(0), ", ", query.size(2), "] expected, got ", table->sizes());
  for (const at::Tensor* other : {&key, &cos, &sin}) check_alike(query, *other, "rope");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

std::tuple<Tensor, Tensor> rope_meta(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin) {
  if (has_plain_sizes(query, key, cos, sin)) kernels::check_rope(query, key, cos, sin);
  return {at::empty_symint(query.sym_sizes(), query.options()), at::empty_symint(key.sym_sizes(), key.options())};
}

// float32 inside and one rounding, as in the kernels; Transformers rounds both products and the sum where the model is
// bf16 or f16.
Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const Tensor wide = widened(x);
  const int64_t half = x.size(2) / 2;
  const Tensor turned = at::cat({-wide.narrow(2, half, half), wide.narrow(2, 0, half)}, 2);
  return (wide * widened(cos).unsqueeze(1) + turned * widened(sin).unsqueeze(1)).to(x.scalar_type());
}

std::tuple<Tensor, Tensor> rope_autograd(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin) {
  if (takes_composed_form(query, key, cos, sin)) {
    kernels::check_rope(query, key, cos, sin);
    return {rotate(query, cos, sin), rotate(key, cos, sin)};
  }
  at::AutoDispatchBelowADInplaceOrView below;
  return rope(query, key, cos, sin);
}

}  // namespace

std::tuple<Tensor, Tensor> rope(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin) {
  static const auto op = find_op<decltype(rope_meta)>("rope");
  return op.call(query, key, cos, sin);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("rope", rope_meta);
}
TORCH_LIBRARY_IMPL(espalier, Autograd, m) {
  m.impl("rope", rope_autograd);
}

}  // namespace espalier::ops
