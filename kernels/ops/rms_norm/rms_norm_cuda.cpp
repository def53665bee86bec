// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

Tensor rms_norm_cuda(const Tensor& x, const Tensor& weight, double eps) {
  kernels::check_rms_norm(x, weight);
  const kernels::ElementType type = kernels::element_type(x, "rms_norm");
  const c10::cuda::CUDAGuard guard(x.device());
  kernels::note_kernel("rms_norm", "cuda");
  const Tensor rows = x.contiguous();
  const Tensor scale = weight.contiguous();
  Tensor out = at::empty(x.sizes(), x.options());
  if (out.numel() == 0) return out;
  const int64_t d = x.size(-1);
  C10_CUDA_CHECK(kernels::rms_norm_cuda(type, rows.const_data_ptr(), scale.const_data_ptr(), out.mutable_data_ptr(),
                                        x.numel() / d, d, static_cast<float>(eps), c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("rms_norm", rms_norm_cuda);
}

}  // namespace espalier::ops
