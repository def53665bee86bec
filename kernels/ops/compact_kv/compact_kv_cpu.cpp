// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "espalier/ops.h"
#include "kernels/ops/compact_kv/compact_kv.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void compact_kv_plain(const void* x, const int64_t* index, void* out, const KvShape& shape, int64_t begin,
                      int64_t end) {
  const auto* from = static_cast<const char*>(x);
  for (int64_t i = begin; i < end; ++i)
    for (int64_t h = 0; h < shape.heads; ++h)
      std::memcpy(static_cast<char*>(out) + (i * shape.heads + h) * shape.d_bytes,
                  from + index[h * shape.index_stride + i] * shape.token_stride + h * shape.head_stride,
                  static_cast<size_t>(shape.d_bytes));
}

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kBytesPerTask = 1 << 17;

// Heads that share their choice and lie behind each other are copied as one head of heads · d.
kernels::KvShape kv_shape(const Tensor& x, const Tensor& index) {
  const int64_t element = x.element_size();
  const bool is_shared = index.dim() == 1;
  if (is_shared && x.stride(1) == x.size(2))
    return {index.size(0), 1, x.size(1) * x.size(2) * element, x.stride(0) * element, 0, 0};
  return {index.size(-1),        x.size(1),
          x.size(2) * element,   x.stride(0) * element,
          x.stride(1) * element, is_shared ? 0 : index.size(1)};
}

Tensor compact(const Tensor& cache, const Tensor& index) {
  const int64_t sizes[] = {index.size(-1), cache.size(1), cache.size(2)};
  Tensor out = at::empty(sizes, cache.options());
  if (out.numel() == 0) return out;
  const Tensor rows = cache.stride(2) == 1 ? cache : cache.contiguous();
  const kernels::KvShape shape = kv_shape(rows, index);
  at::parallel_for(0, shape.num_kept, std::max<int64_t>(1, kBytesPerTask / (shape.heads * shape.d_bytes)),
                   [&](int64_t begin, int64_t end) {
                     kernels::compact_kv_plain(rows.const_data_ptr(), index.const_data_ptr<int64_t>(),
                                               out.mutable_data_ptr(), shape, begin, end);
                   });
  return out;
}

std::tuple<Tensor, Tensor> compact_kv_cpu(const Tensor& key, const Tensor& value, const Tensor& index) {
  kernels::check_compact_kv(key, value, index);
  const Tensor choice = index.contiguous();
  kernels::note_kernel("compact_kv", "memcpy");
  kernels::check_index_range(choice.const_data_ptr<int64_t>(), choice.numel(), key.size(0), "compact_kv");
  return {compact(key, choice), compact(value, choice)};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("compact_kv", compact_kv_cpu);
}

}  // namespace espalier::ops
