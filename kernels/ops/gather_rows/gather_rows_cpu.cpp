// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "espalier/ops.h"
#include "kernels/ops/gather_rows/gather_rows.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void gather_rows_plain(const void* x, const int64_t* index, void* out, const RowBytes& rows, int64_t begin,
                       int64_t end) {
  for (int64_t i = begin; i < end; ++i)
    std::memcpy(static_cast<char*>(out) + i * rows.row_bytes, static_cast<const char*>(x) + index[i] * rows.row_stride,
                static_cast<size_t>(rows.row_bytes));
}

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kBytesPerTask = 1 << 17;

Tensor gather_rows_cpu(const Tensor& x, const Tensor& index) {
  kernels::check_gather_rows(x, index);
  kernels::note_kernel("gather_rows", "memcpy");
  const Tensor order = index.contiguous();
  kernels::check_index_range(order.const_data_ptr<int64_t>(), order.numel(), x.size(0), "gather_rows");
  auto sizes = x.sizes().vec();
  sizes[0] = index.size(0);
  Tensor out = at::empty(sizes, x.options());
  if (out.numel() == 0) return out;
  const Tensor rows = x.select(0, 0).is_contiguous() ? x : x.contiguous();
  const int64_t element = x.element_size();
  const kernels::RowBytes shape{out.numel() / out.size(0) * element, rows.stride(0) * element};
  at::parallel_for(0, out.size(0), std::max<int64_t>(1, kBytesPerTask / shape.row_bytes),
                   [&](int64_t begin, int64_t end) {
                     kernels::gather_rows_plain(rows.const_data_ptr(), order.const_data_ptr<int64_t>(),
                                                out.mutable_data_ptr(), shape, begin, end);
                   });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("gather_rows", gather_rows_cpu);
}

}  // namespace espalier::ops
