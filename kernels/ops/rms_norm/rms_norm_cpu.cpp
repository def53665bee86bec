// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void rms_norm_plain(const T* x, const T* weight, T* out, int64_t begin, int64_t end, int64_t d, float eps) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x + r * d;
    float sum = 0.0F;
    for (int64_t i = 0; i < d; ++i) sum += static_cast<float>(row[i]) * static_cast<float>(row[i]);
    const float scale = 1.0F / std::sqrt(sum / static_cast<float>(d) + eps);
    for (int64_t i = 0; i < d; ++i) {
      const T normed = static_cast<T>(static_cast<float>(row[i]) * scale);
      out[r * d + i] = static_cast<T>(static_cast<float>(normed) * static_cast<float>(weight[i]));
    }
  }
}

template void rms_norm_plain(const float*, const float*, float*, int64_t, int64_t, int64_t, float);
template void rms_norm_plain(const c10::BFloat16*, const c10::BFloat16*, c10::BFloat16*, int64_t, int64_t, int64_t,
                             float);
template void rms_norm_plain(const c10::Half*, const c10::Half*, c10::Half*, int64_t, int64_t, int64_t, float);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;  // about 10 us of one core, well above the cost of waking another

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  kernels::check_rms_norm(x, weight);
  const kernels::ElementType type = kernels::element_type(x, "rms_norm");
  const Tensor rows = x.contiguous();
  const Tensor scale = weight.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  const int64_t d = x.size(-1);
  const auto eps32 = static_cast<float>(eps);
  kernels::note_kernel("rms_norm", kernels::vector_kernel_name(kernels::cpu_level()));
  kernels::RmsNormLoop* vector =
      kernels::vector_form(kernels::cpu_level(), kernels::avx2::rms_norm, kernels::avx512::rms_norm);
  at::parallel_for(0, x.numel() / d, std::max<int64_t>(1, kElementsPerTask / d), [&](int64_t begin, int64_t end) {
    if (vector != nullptr)
      return vector(type, rows.const_data_ptr(), scale.const_data_ptr(), out.mutable_data_ptr(), begin, end, d, eps32);
    kernels::visit_element_type(x, "rms_norm", [&]<typename T>(T) {
      kernels::rms_norm_plain(rows.const_data_ptr<T>(), scale.const_data_ptr<T>(), out.mutable_data_ptr<T>(), begin,
                              end, d, eps32);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("rms_norm", rms_norm_cpu);
}

}  // namespace espalier::ops
