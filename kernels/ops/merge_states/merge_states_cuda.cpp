// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/merge_states/merge_states.h"
#include "kernels/ops/merge_states/merge_states_arguments.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

std::tuple<Tensor, Tensor> merge_states_cuda(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                             const Tensor& lse_b) {
  const c10::cuda::CUDAGuard guard(output_a.device());
  const MergeStatesTensors tensors(output_a, lse_a, output_b, lse_b);
  kernels::note_kernel("merge_states", "cuda");
  C10_CUDA_CHECK(kernels::merge_states_cuda(tensors.problem, c10::cuda::getCurrentCUDAStream()));
  return {tensors.output, tensors.lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("merge_states", merge_states_cuda);
}

}  // namespace espalier::ops
