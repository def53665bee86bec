// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"

namespace espalier::ops {
namespace {

Tensor attention_growth_cuda(const AttentionGrowthCall& in) {
  const c10::cuda::CUDAGuard guard(in.lower.query.device());
  const kernels::GrowthPointers p(in);
  kernels::note_kernel("attention_growth", "cuda");
  C10_CUDA_CHECK(kernels::attention_growth_cuda(p.lower.layer, p.upper.layer, p.groups.shape, in.relu_per_head,
                                                p.direction.direction, p.out.mutable_data_ptr<float>(),
                                                c10::cuda::getCurrentCUDAStream()));
  return p.out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_growth", Unpacked<AttentionGrowthSignature, attention_growth_cuda>::call);
}

}  // namespace espalier::ops
