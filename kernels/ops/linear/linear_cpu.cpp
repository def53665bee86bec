// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/linear/linear.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include <algorithm>

#include "espalier/ops.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

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

bool library_multiplies(const at::Tensor& x) {
  if (!x.is_cpu()) return true;
  if (x.scalar_type() == at::kBFloat16) return cpu_level() >= CpuLevel::kAvx512;
  return x.scalar_type() != at::kHalf || has_avx512_fp16();
}

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

// A task reads about this much of the weight: long enough to stream, short enough to share.
constexpr int64_t kBytesPerTask = 1 << 17;

// linear_widened piece by piece: the widened part of the weight is multiplied while it is in the cache.
Tensor multiply_widened(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, Tensor out) {
  constexpr int64_t kElementsAtOnce = int64_t{1} << 20;
  const int64_t in = weight.size(1), outputs = weight.size(0);
  const int64_t step = std::max<int64_t>(1, kElementsAtOnce / std::max<int64_t>(in, 1));
  const Tensor wide_x = x.reshape({-1, in}).to(at::kFloat);
  const Tensor rows = out.view({-1, outputs});
  const bool has_bias = bias.has_value() && bias->defined();
  for (int64_t o = 0; o < outputs; o += step) {
    const int64_t count = std::min(step, outputs - o);
    const OptionalTensor part_of_bias =
        has_bias ? OptionalTensor(bias->narrow(0, o, count).to(at::kFloat)) : OptionalTensor();
    rows.narrow(1, o, count).copy_(at::linear(wide_x, weight.narrow(0, o, count).to(at::kFloat), part_of_bias));
  }
  return out;
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  kernels::check_linear(x, weight, bias);
  const int64_t in = weight.size(1), rows = in == 0 ? 0 : x.numel() / in;
  const kernels::CpuLevel level = kernels::cpu_level();
  kernels::LinearRowsLoop* vector =
      kernels::vector_form(level, kernels::avx2::linear_rows, kernels::avx512::linear_rows);
  const bool has_bias = bias.has_value() && bias->defined();
  const bool is_few = vector != nullptr && rows > 0 && rows <= kernels::kFewRows && weight.is_contiguous() && !has_bias;
  const bool is_widened = !is_few && rows > 0 && !kernels::library_multiplies(x);
  kernels::note_kernel("linear", is_few       ? kernels::few_rows_kernel_name(level)
                                 : is_widened ? "library_widened"
                                              : "library");
  if (!is_few && !is_widened) return at::linear(x, weight, bias);
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  Tensor out = at::empty(sizes, x.options());
  if (is_widened) return multiply_widened(x, weight, bias, out);
  const kernels::ElementType type = kernels::element_type(x, "linear");
  const Tensor dense = x.contiguous();
  const kernels::LinearShape shape{rows, in, weight.size(0)};
  const int64_t outputs_per_task = std::max<int64_t>(1, kBytesPerTask / (in * weight.element_size()));
  at::parallel_for(0, shape.out, outputs_per_task, [&](int64_t begin, int64_t end) {
    vector(type, dense.const_data_ptr(), weight.const_data_ptr(), out.mutable_data_ptr(), shape, begin, end);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("linear", linear_cpu);
}

}  // namespace espalier::ops
