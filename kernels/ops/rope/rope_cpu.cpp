// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "espalier/ops.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void rope_plain(const T* x, const T* cos, const T* sin, T* out, const RopeShape& shape, int64_t begin, int64_t end) {
  const int64_t half = shape.d / 2;
  for (int64_t t = begin; t < end; ++t) {
    const T* c = cos + t * shape.d;
    const T* s = sin + t * shape.d;
    for (int64_t h = 0; h < shape.heads; ++h) {
      const T* from = x + t * shape.token_stride + h * shape.head_stride;
      T* to = out + (t * shape.heads + h) * shape.d;
      for (int64_t i = 0; i < half; ++i) {
        const auto low = static_cast<float>(from[i]);
        const auto high = static_cast<float>(from[i + half]);
        to[i] = static_cast<T>(low * static_cast<float>(c[i]) - high * static_cast<float>(s[i]));
        to[i + half] = static_cast<T>(high * static_cast<float>(c[i + half]) + low * static_cast<float>(s[i + half]));
      }
    }
  }
}

template void rope_plain(const float*, const float*, const float*, float*, const RopeShape&, int64_t, int64_t);
template void rope_plain(const c10::BFloat16*, const c10::BFloat16*, const c10::BFloat16*, c10::BFloat16*,
                         const RopeShape&, int64_t, int64_t);
template void rope_plain(const c10::Half*, const c10::Half*, const c10::Half*, c10::Half*, const RopeShape&, int64_t,
                         int64_t);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;

Tensor rotate(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const kernels::ElementType type = kernels::element_type(x, "rope");
  const Tensor rows = x.stride(2) == 1 ? x : x.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  const kernels::RopeShape shape{x.size(0), x.size(1), x.size(2), rows.stride(0), rows.stride(1)};
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / (shape.heads * shape.d));
  kernels::RopeLoop* vector = kernels::vector_form(kernels::cpu_level(), kernels::avx2::rope, kernels::avx512::rope);
  at::parallel_for(0, shape.tokens, grain, [&](int64_t begin, int64_t end) {
    if (vector != nullptr)
      return vector(type, rows.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(), out.mutable_data_ptr(),
                    shape, begin, end);
    kernels::visit_element_type(x, "rope", [&]<typename T>(T) {
      kernels::rope_plain(rows.const_data_ptr<T>(), cos.const_data_ptr<T>(), sin.const_data_ptr<T>(),
                          out.mutable_data_ptr<T>(), shape, begin, end);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> rope_cpu(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin) {
  kernels::check_rope(query, key, cos, sin);
  kernels::note_kernel("rope", kernels::vector_kernel_name(kernels::cpu_level()));
  const Tensor cos_rows = cos.contiguous();
  const Tensor sin_rows = sin.contiguous();
  return {rotate(query, cos_rows, sin_rows), rotate(key, cos_rows, sin_rows)};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("rope", rope_cpu);
}

}  // namespace espalier::ops
