// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/max_min_select/max_min_select.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/max_min_select/max_min_select_arguments.h"
#include "kernels/support/dispatch.h"

namespace espalier::kernels {

int64_t check_row_selection(const char* op, const at::Tensor& features, const at::Tensor& block_begin,
                            const at::Tensor& num_kept, const std::optional<at::Tensor>& forced) {
  TORCH_CHECK(features.dim() == 2, op, ": features [m, d] expected, got ", features.sizes());
  element_type(features, op);
  check_offsets(op, "block_begin", block_begin, features.size(0));
  TORCH_CHECK(num_kept.device().is_cpu() && num_kept.scalar_type() == at::kLong && num_kept.dim() == 1 &&
                  num_kept.size(0) == block_begin.size(0) - 1,
              op, ": num_kept must be int64 [", block_begin.size(0) - 1, "] on the CPU, got ", num_kept.scalar_type(),
              " ", num_kept.sizes(), " on ", num_kept.device());
  const at::Tensor begins = block_begin.contiguous(), counts = num_kept.contiguous();
  const int64_t* begin = begins.const_data_ptr<int64_t>();
  const int64_t* count = counts.const_data_ptr<int64_t>();
  int64_t total = 0;
  for (int64_t i = 0; i < num_kept.size(0); ++i) {
    TORCH_CHECK(count[i] >= 0 && count[i] <= begin[i + 1] - begin[i], op, ": num_kept[", i, "] is ", count[i],
                ", the block has ", begin[i + 1] - begin[i], " rows");
    total += count[i];
  }
  if (forced.has_value() && forced->defined())
    TORCH_CHECK(forced->dim() == 1 && forced->size(0) == features.size(0) && forced->scalar_type() == at::kBool &&
                    forced->device() == features.device(),
                op, ": forced must be Bool [", features.size(0), "] on ", features.device(), ", got ",
                forced->scalar_type(), " ", forced->sizes(), " on ", forced->device());
  return total;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor max_min_select_meta(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                           std::string_view distance, const OptionalTensor& forced) {
  choice_named<Distance>(distance);
  const int64_t total = kernels::check_row_selection("max_min_select", features, block_begin, num_kept, forced);
  return at::empty({total}, features.options().dtype(at::kLong));
}

}  // namespace

Tensor max_min_select(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept, Distance distance,
                      const OptionalTensor& forced) {
  static const auto op = find_op<decltype(max_min_select_meta)>("max_min_select");
  return op.call(features, block_begin, num_kept, choice_name(distance), forced);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("max_min_select", max_min_select_meta);
}

}  // namespace espalier::ops
