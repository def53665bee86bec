// SPDX-License-Identifier: Apache-2.0
// The distances are the library's; the whole greedy choice is one launch. The host waits for nothing.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/chosen_kernels.h"
#include "kernels/cosine_matrix_cuda.h"
#include "kernels/max_min_select.h"
#include "kernels/max_min_select_arguments.h"

namespace espalier::ops {
namespace {

constexpr int64_t kByDifferences = 2;  // cdist without matrix products, which lose what tells near rows apart

at::Tensor distance_matrix(const at::Tensor& x, kernels::RowDistance distance) {
  const at::Tensor matrix = distance == kernels::RowDistance::kCosine
                                ? 1.0 - kernels::cosine_matrix_cuda(x)
                                : at::cdist(x, x, distance == kernels::RowDistance::kL1 ? 1.0 : 2.0, kByDifferences);
  return at::nan_to_num(matrix, 0.0).clamp_min_(0.0).contiguous();
}

at::Tensor max_min_select_cuda(const at::Tensor& features, const at::Tensor& block_begin_in,
                               const at::Tensor& num_kept_in, std::string_view distance,
                               const std::optional<at::Tensor>& forced_in) {
  const kernels::RowDistance measure = kernels::row_distance(distance);
  const int64_t total =
      kernels::check_row_selection("max_min_select", features, block_begin_in, num_kept_in, forced_in);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("max_min_select", "library + cuda");
  const at::NoTF32Guard full_precision;
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  const at::Tensor x = features.to(at::kFloat).contiguous();
  at::Tensor out = at::empty({total}, features.options().dtype(at::kLong));
  at::Tensor nearest = at::empty({x.size(0)}, x.options());
  at::Tensor is_picked = at::empty({x.size(0)}, x.options().dtype(at::kBool));
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  for (int64_t next = 0; next < num_kept.numel();) {
    kernels::DeviceSelectionBlocks blocks{};
    std::vector<at::Tensor> matrices;
    for (;
         next < num_kept.numel() && static_cast<int64_t>(matrices.size()) < kernels::DeviceSelectionBlocks::kMaxBlocks;
         ++next) {
      const int64_t begin = begins[next], size = begins[next + 1] - begin;
      if (kept[next] == 0) continue;
      matrices.push_back(distance_matrix(x.slice(0, begin, begin + size), measure));
      blocks.block[matrices.size() - 1] = {matrices.back().const_data_ptr<float>(),
                                           forced.defined() ? forced.const_data_ptr<bool>() + begin : nullptr,
                                           nearest.mutable_data_ptr<float>() + begin,
                                           is_picked.mutable_data_ptr<bool>() + begin,
                                           picks,
                                           begin,
                                           size,
                                           kept[next]};
      picks += kept[next];
    }
    C10_CUDA_CHECK(
        kernels::max_min_select_cuda(blocks, static_cast<int64_t>(matrices.size()), c10::cuda::getCurrentCUDAStream()));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("max_min_select", max_min_select_cuda);
}

}  // namespace espalier::ops
