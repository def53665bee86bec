// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/linear_int8/linear_int8.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

Tensor linear_int8_cuda(const Tensor& x, const Tensor& weight, const Tensor& scale) {
  kernels::check_linear_int8(x, weight, scale);
  const int64_t in = weight.size(1), rows = in == 0 ? 0 : x.numel() / in;
  const bool is_ours = rows > 0 && rows <= kernels::kFewRows && weight.size(0) > 0 && weight.is_contiguous();
  kernels::note_kernel("linear_int8", is_ours ? "cuda_rows" : "library");
  if (!is_ours) return kernels::linear_int8_widened(x, weight, scale);
  const c10::cuda::CUDAGuard guard(x.device());
  const Tensor dense = x.contiguous(), scales = scale.contiguous();
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() = weight.size(0);
  Tensor out = at::empty(sizes, x.options());
  C10_CUDA_CHECK(kernels::linear_int8_cuda(kernels::element_type(x, "linear_int8"), dense.const_data_ptr(),
                                           weight.const_data_ptr<int8_t>(), scales.const_data_ptr<float>(),
                                           out.mutable_data_ptr(), {rows, in, weight.size(0)},
                                           c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("linear_int8", linear_int8_cuda);
}

}  // namespace espalier::ops
