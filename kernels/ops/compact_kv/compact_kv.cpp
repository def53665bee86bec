// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/compact_kv/compact_kv.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/support/dispatch.h"
#include "kernels/support/meta_shapes.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void check_compact_kv(const at::Tensor& key, const at::Tensor& value, const at::Tensor& index) {
  TORCH_CHECK(key.dim() == 3 && key.sizes() == value.sizes(), "compact_kv: key and value [n, g, d] expected, got ",
              key.sizes(), " and ", value.sizes());
  TORCH_CHECK(index.dim() == 1 || (index.dim() == 2 && index.size(0) == key.size(1)),
              "compact_kv: index [k] or [g, k] with g = ", key.size(1), " expected, got ", index.sizes());
  check_alike(key, value, "compact_kv");
  check_index(index, key, "compact_kv");
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

std::tuple<Tensor, Tensor> compact_kv_meta(const Tensor& key, const Tensor& value, const Tensor& index) {
  if (has_plain_sizes(key, value, index)) kernels::check_compact_kv(key, value, index);
  const c10::SymInt sizes[] = {index.sym_size(-1), key.sym_size(1), key.sym_size(2)};
  return {at::empty_symint(sizes, key.options()), at::empty_symint(sizes, value.options())};
}

}  // namespace

std::tuple<Tensor, Tensor> compact_kv(const Tensor& key, const Tensor& value, const Tensor& index) {
  static const auto op = find_op<decltype(compact_kv_meta)>("compact_kv");
  return op.call(key, value, index);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("compact_kv", compact_kv_meta);
}

}  // namespace espalier::ops
