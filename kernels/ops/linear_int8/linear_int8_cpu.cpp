// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/linear_int8/linear_int8.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void linear_int8_plain(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape,
                       int64_t begin, int64_t end) {
  for (int64_t r = 0; r < shape.rows; ++r)
    for (int64_t o = begin; o < end; ++o) {
      float sum = 0;
      for (int64_t i = 0; i < shape.in; ++i)
        sum += static_cast<float>(x[r * shape.in + i]) * static_cast<float>(weight[o * shape.in + i]);
      out[r * shape.out + o] = static_cast<T>(sum * scale[o]);
    }
}

template void linear_int8_plain(const float*, const int8_t*, const float*, float*, const LinearShape&, int64_t,
                                int64_t);
template void linear_int8_plain(const c10::BFloat16*, const int8_t*, const float*, c10::BFloat16*, const LinearShape&,
                                int64_t, int64_t);
template void linear_int8_plain(const c10::Half*, const int8_t*, const float*, c10::Half*, const LinearShape&, int64_t,
                                int64_t);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kBytesPerTask = 1 << 16;

Tensor linear_int8_cpu(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  kernels::check_linear_int8(x, weight, scale);
  const int64_t in = weight.size(1), rows = in == 0 ? 0 : x.numel() / in;
  const kernels::CpuLevel level = kernels::cpu_level();
  kernels::LinearInt8RowsLoop* vector =
      kernels::vector_form(level, kernels::avx2::linear_int8_rows, kernels::avx512::linear_int8_rows);
  const bool is_ours = vector != nullptr && rows > 0 && rows <= kernels::kFewRows && weight.is_contiguous();
  kernels::note_kernel("linear_int8", is_ours ? kernels::few_rows_kernel_name(level) : "library");
  if (!is_ours) return kernels::linear_int8_widened(x, weight, scale);
  const Tensor dense = x.contiguous(), scales = scale.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  Tensor out = at::empty(sizes, x.options());
  const kernels::LinearShape shape{rows, in, weight.size(0)};
  at::parallel_for(0, shape.out, std::max<int64_t>(1, kBytesPerTask / in), [&](int64_t begin, int64_t end) {
    vector(kernels::element_type(x, "linear_int8"), dense.const_data_ptr(), weight.const_data_ptr<int8_t>(),
           scales.const_data_ptr<float>(), out.mutable_data_ptr(), shape, begin, end);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("linear_int8", linear_int8_cpu);
}

}  // namespace espalier::ops
