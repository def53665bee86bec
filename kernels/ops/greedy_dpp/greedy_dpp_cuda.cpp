// SPDX-License-Identifier: Apache-2.0
// The cosines are the library's; the whole greedy choice is one launch. The host waits for nothing.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <vector>

#include "kernels/ops/greedy_dpp/greedy_dpp.h"
#include "kernels/ops/greedy_dpp/greedy_dpp_arguments.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cosine_matrix_cuda.h"
#include "kernels/support/row_selection_cuda.h"

namespace espalier::ops {
namespace {

at::Tensor greedy_dpp_cuda(const at::Tensor& features, const at::Tensor& relevance_in, const at::Tensor& block_begin,
                           const at::Tensor& num_kept, const std::optional<at::Tensor>& forced) {
  kernels::check_greedy_dpp(features, relevance_in, block_begin, num_kept, forced);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("greedy_dpp", "library + cuda");
  const at::NoTF32Guard full_precision;
  const at::Tensor relevance = at::nan_to_num(relevance_in, 0.0, 0.0, 0.0).contiguous();
  const at::Tensor x = features.to(at::kFloat).contiguous();
  at::Tensor residual = at::empty({x.size(0)}, x.options().dtype(at::kDouble));
  const auto describe = [&](const kernels::SelectionRows& rows, std::vector<at::Tensor>& owned) {
    const at::Tensor cosine = kernels::cosine_matrix_cuda(x.narrow(0, rows.begin, rows.size)).contiguous();
    const at::Tensor factor = at::empty({rows.num_kept, rows.size}, residual.options());
    owned.insert(owned.end(), {cosine, factor});
    return kernels::DeviceDppBlock{.cosine = cosine.const_data_ptr<float>(),
                                   .relevance = relevance.const_data_ptr<float>() + rows.begin,
                                   .forced = rows.forced,
                                   .factor = factor.mutable_data_ptr<double>(),
                                   .residual = residual.mutable_data_ptr<double>() + rows.begin,
                                   .is_picked = rows.is_picked,
                                   .picks = rows.picks,
                                   .begin = rows.begin,
                                   .size = rows.size,
                                   .num_kept = rows.num_kept};
  };
  return kernels::select_rows_cuda<kernels::DeviceDppBlocks>(features, block_begin, num_kept, forced, describe,
                                                             kernels::greedy_dpp_cuda);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("greedy_dpp", greedy_dpp_cuda);
}

}  // namespace espalier::ops
