// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

template <typename T>
void silu_mul_plain(const T* gate, const T* up, T* out, const SiluMulShape& shape, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* g = gate + r * shape.gate_stride;
    const T* u = up + r * shape.up_stride;
    for (int64_t i = 0; i < shape.d; ++i) {
      const auto x = static_cast<float>(g[i]);
      out[r * shape.d + i] = static_cast<T>(x / (1.0F + std::exp(-x)) * static_cast<float>(u[i]));
    }
  }
}

template void silu_mul_plain(const float*, const float*, float*, const SiluMulShape&, int64_t, int64_t);
template void silu_mul_plain(const c10::BFloat16*, const c10::BFloat16*, c10::BFloat16*, const SiluMulShape&, int64_t,
                             int64_t);
template void silu_mul_plain(const c10::Half*, const c10::Half*, c10::Half*, const SiluMulShape&, int64_t, int64_t);

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

constexpr int64_t kElementsPerTask = 1 << 13;  // an exponential each

Tensor with_contiguous_rows(const Tensor& t) {
  return t.dim() == 2 && t.stride(1) == 1 ? t : t.contiguous();
}

Tensor silu_mul_cpu(const Tensor& gate, const Tensor& up) {
  kernels::check_silu_mul(gate, up);
  const kernels::ElementType type = kernels::element_type(gate, "silu_mul");
  const Tensor gate_rows = with_contiguous_rows(gate);
  const Tensor up_rows = with_contiguous_rows(up);
  Tensor out = at::empty(gate.sizes(), gate.options());
  if (out.numel() == 0) return out;
  const int64_t d = gate.dim() == 0 ? 1 : gate.size(-1);
  const bool is_matrix = gate.dim() == 2;
  const kernels::SiluMulShape shape{gate.numel() / d, d, is_matrix ? gate_rows.stride(0) : d,
                                    is_matrix ? up_rows.stride(0) : d};
  kernels::note_kernel("silu_mul", kernels::vector_kernel_name(kernels::cpu_level()));
  kernels::SiluMulLoop* vector =
      kernels::vector_form(kernels::cpu_level(), kernels::avx2::silu_mul, kernels::avx512::silu_mul);
  at::parallel_for(0, shape.rows, std::max<int64_t>(1, kElementsPerTask / d), [&](int64_t begin, int64_t end) {
    if (vector != nullptr)
      return vector(type, gate_rows.const_data_ptr(), up_rows.const_data_ptr(), out.mutable_data_ptr(), shape, begin,
                    end);
    kernels::visit_element_type(gate, "silu_mul", [&]<typename T>(T) {
      kernels::silu_mul_plain(gate_rows.const_data_ptr<T>(), up_rows.const_data_ptr<T>(), out.mutable_data_ptr<T>(),
                              shape, begin, end);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("silu_mul", silu_mul_cpu);
}

}  // namespace espalier::ops
