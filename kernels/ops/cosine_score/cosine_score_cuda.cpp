// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/ops/cosine_score/cosine_score_arguments.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

at::Tensor cosine_score_cuda(const at::Tensor& x_in, const at::Tensor& direction_in,
                             const std::optional<at::Tensor>& index_in) {
  kernels::check_cosine_score(x_in, direction_in, index_in);
  const c10::cuda::CUDAGuard guard(x_in.device());
  kernels::note_kernel("cosine_score", "cuda");
  const at::Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous();
  const at::Tensor direction = direction_in.to(at::kFloat).contiguous();
  const at::Tensor index = index_in.has_value() && index_in->defined() ? index_in->contiguous() : at::Tensor();
  const int64_t count = index.defined() ? index.size(0) : x.size(0);
  at::Tensor out = at::empty({direction.size(0), count}, x.options().dtype(at::kFloat));
  C10_CUDA_CHECK(kernels::cosine_score_cuda(
      x.const_data_ptr(), x.stride(0), kernels::element_type(x, "cosine_score"), direction.const_data_ptr<float>(),
      index.defined() ? index.const_data_ptr<int64_t>() : nullptr, count, direction.size(0), x.size(1),
      out.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("cosine_score", cosine_score_cuda);
}

}  // namespace espalier::ops
