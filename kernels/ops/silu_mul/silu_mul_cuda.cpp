// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

Tensor with_contiguous_rows(const Tensor& t) {
  return t.dim() == 2 && t.stride(1) == 1 ? t : t.contiguous();
}

Tensor silu_mul_cuda(const Tensor& gate, const Tensor& up) {
  kernels::check_silu_mul(gate, up);
  const kernels::ElementType type = kernels::element_type(gate, "silu_mul");
  const c10::cuda::CUDAGuard guard(gate.device());
  kernels::note_kernel("silu_mul", "cuda");
  const Tensor gate_rows = with_contiguous_rows(gate);
  const Tensor up_rows = with_contiguous_rows(up);
  Tensor out = at::empty(gate.sizes(), gate.options());
  if (out.numel() == 0) return out;
  const int64_t d = gate.dim() == 0 ? 1 : gate.size(-1);
  const bool is_matrix = gate.dim() == 2;
  const kernels::SiluMulShape shape{gate.numel() / d, d, is_matrix ? gate_rows.stride(0) : d,
                                    is_matrix ? up_rows.stride(0) : d};
  C10_CUDA_CHECK(kernels::silu_mul_cuda(type, gate_rows.const_data_ptr(), up_rows.const_data_ptr(),
                                        out.mutable_data_ptr(), shape, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("silu_mul", silu_mul_cuda);
}

}  // namespace espalier::ops
