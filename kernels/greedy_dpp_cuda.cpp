// SPDX-License-Identifier: Apache-2.0
// The cosines are the library's; the whole greedy choice is one launch. The host waits for nothing.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "kernels/chosen_kernels.h"
#include "kernels/cosine_matrix_cuda.h"
#include "kernels/greedy_dpp.h"
#include "kernels/greedy_dpp_arguments.h"

namespace espalier::ops {
namespace {

at::Tensor greedy_dpp_cuda(const at::Tensor& features, const at::Tensor& relevance_in, const at::Tensor& block_begin_in,
                           const at::Tensor& num_kept_in, const std::optional<at::Tensor>& forced_in) {
  const int64_t total = kernels::check_greedy_dpp(features, relevance_in, block_begin_in, num_kept_in, forced_in);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("greedy_dpp", "library + cuda");
  const at::NoTF32Guard full_precision;
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  const at::Tensor relevance = at::nan_to_num(relevance_in, 0.0, 0.0, 0.0).contiguous();
  const at::Tensor x = features.to(at::kFloat).contiguous();
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  at::Tensor residual = at::empty({x.size(0)}, x.options().dtype(at::kDouble));
  at::Tensor is_picked = at::empty({x.size(0)}, x.options().dtype(at::kBool));
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  for (int64_t next = 0; next < num_kept.numel();) {
    kernels::DeviceDppBlocks blocks{};
    std::vector<at::Tensor> matrices, factors;
    for (; next < num_kept.numel() && static_cast<int64_t>(matrices.size()) < kernels::DeviceDppBlocks::kMaxBlocks;
         ++next) {
      const int64_t begin = begins[next], size = begins[next + 1] - begin;
      if (kept[next] == 0) continue;
      matrices.push_back(kernels::cosine_matrix_cuda(x.slice(0, begin, begin + size)).contiguous());
      factors.push_back(at::empty({kept[next], size}, residual.options()));
      blocks.block[matrices.size() - 1] = {matrices.back().const_data_ptr<float>(),
                                           relevance.const_data_ptr<float>() + begin,
                                           forced.defined() ? forced.const_data_ptr<bool>() + begin : nullptr,
                                           factors.back().mutable_data_ptr<double>(),
                                           residual.mutable_data_ptr<double>() + begin,
                                           is_picked.mutable_data_ptr<bool>() + begin,
                                           picks,
                                           begin,
                                           size,
                                           kept[next]};
      picks += kept[next];
    }
    C10_CUDA_CHECK(
        kernels::greedy_dpp_cuda(blocks, static_cast<int64_t>(matrices.size()), c10::cuda::getCurrentCUDAStream()));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("greedy_dpp", greedy_dpp_cuda);
}

}  // namespace espalier::ops
