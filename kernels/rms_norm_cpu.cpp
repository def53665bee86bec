// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "espalier/ops.h"
#include "kernels/rms_norm.h"
#include "kernels/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void rms_norm_plain(const T* x, const T* weight, T* out, int64_t rows, int64_t d, float eps) {
  for (int64_t r = 0; r < rows; ++r, x += d, out += d) {
    float sum = 0.0F;
    for (int64_t i = 0; i < d; ++i) sum += static_cast<float>(x[i]) * static_cast<float>(x[i]);
    const float scale = 1.0F / std::sqrt(sum / static_cast<float>(d) + eps);
    for (int64_t i = 0; i < d; ++i) {
      const T normed = static_cast<T>(static_cast<float>(x[i]) * scale);
      out[i] = static_cast<T>(static_cast<float>(normed) * static_cast<float>(weight[i]));
    }
  }
}

template void rms_norm_plain(const float*, const float*, float*, int64_t, int64_t, float);
template void rms_norm_plain(const c10::BFloat16*, const c10::BFloat16*, c10::BFloat16*, int64_t, int64_t, float);
template void rms_norm_plain(const c10::Half*, const c10::Half*, c10::Half*, int64_t, int64_t, float);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 15;  // about 10 us of one core, well above the cost of waking another

Tensor rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps) {
  kernels::check_rms_norm(x, weight);
  const Tensor rows = x.contiguous();
  const Tensor scale = weight.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  const int64_t d = x.size(-1);
  kernels::visit_element_type(x, "rms_norm", [&]<typename T>(T) {
    const T* from = rows.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    at::parallel_for(0, x.numel() / d, std::max<int64_t>(1, kElementsPerTask / d), [&](int64_t begin, int64_t end) {
      kernels::rms_norm_plain(from + begin * d, scale.const_data_ptr<T>(), to + begin * d, end - begin, d,
                              static_cast<float>(eps));
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("rms_norm", rms_norm_cpu);
}

}  // namespace espalier::ops
