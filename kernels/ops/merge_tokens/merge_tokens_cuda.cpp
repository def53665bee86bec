// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/merge_tokens/merge_tokens.h"
#include "kernels/ops/merge_tokens/merge_tokens_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

Tensor merge_tokens_cuda(const Tensor& x_in, const Tensor& index_in, const Tensor& group_begin_in,
                         const OptionalTensor& weight_in) {
  kernels::check_merge_tokens(x_in, index_in, group_begin_in, weight_in);
  const kernels::ElementType type = kernels::element_type(x_in, "merge_tokens");
  const c10::cuda::CUDAGuard guard(x_in.device());
  kernels::note_kernel("merge_tokens", "cuda");
  const Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous();
  const Tensor index = index_in.contiguous(), group_begin = group_begin_in.contiguous();
  const Tensor weight = weight_in.has_value() && weight_in->defined() ? weight_in->contiguous() : Tensor();
  Tensor out = at::empty({group_begin.size(0) - 1, x.size(1)}, x.options());
  if (out.numel() == 0) return out;
  const kernels::MergeGroups groups{index.const_data_ptr<int64_t>(), group_begin.const_data_ptr<int64_t>(),
                                    weight.defined() ? weight.const_data_ptr<float>() : nullptr};
  C10_CUDA_CHECK(kernels::merge_tokens_cuda(type, x.const_data_ptr(), groups, out.mutable_data_ptr(),
                                            {x.size(1), x.stride(0)}, x.size(0), index.numel(), out.size(0),
                                            c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("merge_tokens", merge_tokens_cuda);
}

}  // namespace espalier::ops
