// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/rope/rope.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

kernels::RopeShape rope_shape(const Tensor& x) {
  return {x.size(0), x.size(1), x.size(2), x.stride(0), x.stride(1)};
}

std::tuple<Tensor, Tensor> rope_cuda(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin) {
  kernels::check_rope(query, key, cos, sin);
  const kernels::ElementType type = kernels::element_type(query, "rope");
  const c10::cuda::CUDAGuard guard(query.device());
  kernels::note_kernel("rope", "cuda");
  const Tensor query_rows = query.stride(2) == 1 ? query : query.contiguous();
  const Tensor key_rows = key.stride(2) == 1 ? key : key.contiguous();
  const Tensor cos_rows = cos.contiguous();
  const Tensor sin_rows = sin.contiguous();
  Tensor query_out = at::empty(query.sizes(), query.options());
  Tensor key_out = at::empty(key.sizes(), key.options());
  if (query_out.numel() + key_out.numel() == 0) return {query_out, key_out};
  C10_CUDA_CHECK(kernels::rope_cuda(type, query_rows.const_data_ptr(), rope_shape(query_rows),
                                    query_out.mutable_data_ptr(), key_rows.const_data_ptr(), rope_shape(key_rows),
                                    key_out.mutable_data_ptr(), cos_rows.const_data_ptr(), sin_rows.const_data_ptr(),
                                    c10::cuda::getCurrentCUDAStream()));
  return {query_out, key_out};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("rope", rope_cuda);
}

}  // namespace espalier::ops
