// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/topk_sorted/topk_sorted.h"
#include "kernels/support/dispatch.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "espalier/ops.h"

namespace espalier::kernels {

int64_t check_topk_sorted(const at::Tensor& scores, const at::Tensor& block_begin, const at::Tensor& num_kept) {
  TORCH_CHECK(scores.dim() == 1 && scores.scalar_type() == at::kFloat, "topk_sorted: scores float32 [m] expected, got ",
              scores.scalar_type(), " ", scores.sizes());
  for (const at::Tensor* t : {&block_begin, &num_kept})
    TORCH_CHECK(t->dim() == 1 && t->scalar_type() == at::kLong && t->device().is_cpu() && t->is_contiguous(),
                "topk_sorted: block_begin and num_kept contiguous int64 [b + 1] and [b] on the CPU expected, got ",
                t->scalar_type(), " ", t->sizes(), " on ", t->device());
  TORCH_CHECK(block_begin.size(0) == num_kept.size(0) + 1,
              "topk_sorted: block_begin [b + 1] and num_kept [b] expected, got ", block_begin.sizes(), " and ",
              num_kept.sizes());
  const int64_t* begin = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  TORCH_CHECK(begin[0] >= 0, "topk_sorted: block_begin[0] = ", begin[0], " is negative");
  int64_t total = 0;
  for (int64_t i = 0; i < num_kept.size(0); total += kept[i++]) {
    TORCH_CHECK(begin[i] <= begin[i + 1], "topk_sorted: block_begin must ascend, got ", begin[i], " before ",
                begin[i + 1]);
    TORCH_CHECK(kept[i] >= 0 && kept[i] <= begin[i + 1] - begin[i], "topk_sorted: num_kept[", i, "] = ", kept[i],
                " of a block of ", begin[i + 1] - begin[i], " scores");
  }
  const int64_t last = begin[num_kept.size(0)];
  TORCH_CHECK(last <= scores.size(0), "topk_sorted: blocks end at ", last, " of ", scores.size(0), " scores");
  return total;
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

Tensor topk_sorted_meta(const Tensor& scores, const Tensor& block_begin, const Tensor& num_kept) {
  return at::empty({kernels::check_topk_sorted(scores, block_begin, num_kept)}, scores.options().dtype(at::kLong));
}

}  // namespace

Tensor topk_sorted(const Tensor& scores, const Tensor& block_begin, const Tensor& num_kept) {
  static const auto op = find_op<decltype(topk_sorted_meta)>("topk_sorted");
  return op.call(scores, block_begin, num_kept);
}

TORCH_LIBRARY_IMPL(espalier, Meta, m) {
  m.impl("topk_sorted", topk_sorted_meta);
}

}  // namespace espalier::ops
