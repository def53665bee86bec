// SPDX-License-Identifier: Apache-2.0
#include "kernels/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include <algorithm>

#include "espalier/ops.h"
#include "kernels/chosen_kernels.h"
#include "kernels/cpu_level.h"
#include "kernels/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void linear_plain(const T* x, const T* weight, T* out, const LinearShape& shape, int64_t begin, int64_t end) {
  for (int64_t r = 0; r < shape.rows; ++r)
    for (int64_t o = begin; o < end; ++o) {
      float sum = 0;
      for (int64_t i = 0; i < shape.in; ++i)
        sum += static_cast<float>(x[r * shape.in + i]) * static_cast<float>(weight[o * shape.in + i]);
      out[r * shape.out + o] = static_cast<T>(sum);
    }
}

template void linear_plain(const float*, const float*, float*, const LinearShape&, int64_t, int64_t);
template void linear_plain(const c10::BFloat16*, const c10::BFloat16*, c10::BFloat16*, const LinearShape&, int64_t,
                           int64_t);
template void linear_plain(const c10::Half*, const c10::Half*, c10::Half*, const LinearShape&, int64_t, int64_t);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

// A task reads about this much of the weight: long enough to stream, short enough to share.
constexpr int64_t kBytesPerTask = 1 << 17;

Tensor linear_cpu(const Tensor& x, const Tensor& weight) {
  kernels::check_linear(x, weight);
  const int64_t in = weight.size(1), rows = in == 0 ? 0 : x.numel() / in;
  const bool is_ours = kernels::cpu_level() == kernels::CpuLevel::kAvx512 && rows > 0 && rows <= kernels::kFewRows &&
                       weight.is_contiguous();
  kernels::note_kernel("linear", is_ours ? "avx512_rows" : "library");
  if (!is_ours) return at::linear(x, weight);
  const kernels::ElementType type = kernels::element_type(x, "linear");
  const Tensor dense = x.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  Tensor out = at::empty(sizes, x.options());
  const kernels::LinearShape shape{rows, in, weight.size(0)};
  const int64_t outputs_per_task = std::max<int64_t>(1, kBytesPerTask / (in * weight.element_size()));
  at::parallel_for(0, shape.out, outputs_per_task, [&](int64_t begin, int64_t end) {
    kernels::linear_avx512(type, dense.const_data_ptr(), weight.const_data_ptr(), out.mutable_data_ptr(), shape, begin,
                           end);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("linear", linear_cpu);
}

}  // namespace espalier::ops
