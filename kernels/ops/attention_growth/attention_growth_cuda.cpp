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
  const kernels::LayerPointers lower("attention_growth", in.lower);
  const kernels::LayerPointers upper("attention_growth", in.upper);
  const kernels::GroupPointers groups("attention_growth", kernels::groups_of(in));
  kernels::check_growth(in);
  const kernels::DirectionPointers pointers(in.hidden, in.direction, in.cosine_weight);
  Tensor out = at::empty({in.columns.size(0)}, in.lower.lse.options());
  kernels::note_kernel("attention_growth", "cuda");
  C10_CUDA_CHECK(kernels::attention_growth_cuda(lower.layer, upper.layer, groups.shape, in.relu_per_head,
                                                pointers.direction, out.mutable_data_ptr<float>(),
                                                c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_growth", Unpacked<AttentionGrowthSignature, attention_growth_cuda>::call);
}

}  // namespace espalier::ops
