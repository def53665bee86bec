// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <vector>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/dispatch.h"

namespace espalier::ops {
namespace {

Tensor attention_probe_cuda(const AttentionProbeCall& in) {
  const c10::cuda::CUDAGuard guard(in.layer.query.device());
  const kernels::LayerPointers layer("attention_probe", in.layer);
  const kernels::GroupPointers groups("attention_probe", kernels::groups_of(in));
  kernels::check_probe_reduction(in);
  const Tensor out = kernels::empty_probe_result(in);
  float* result = out.mutable_data_ptr<float>();
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const bool has_tiles = kernels::attention_probe_has_tiles(groups.shape);
  kernels::note_kernel("attention_probe", has_tiles ? "cuda_tiles" : "cuda");
  if (!has_tiles) {
    C10_CUDA_CHECK(kernels::attention_probe_cuda(layer.layer, groups.shape, in.heads, in.reduce_rows, result, stream));
    return out;
  }
  const at::Tensor partials = at::empty(
      {kernels::attention_probe_tiles_partial_floats(groups.shape, in.heads, in.reduce_rows)}, in.layer.lse.options());
  C10_CUDA_CHECK(kernels::attention_probe_tiles_cuda(layer.layer, groups.shape, in.heads, in.reduce_rows,
                                                     partials.mutable_data_ptr<float>(), result, stream));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_probe", Unpacked<AttentionProbeSignature, attention_probe_cuda>::call);
}

}  // namespace espalier::ops
