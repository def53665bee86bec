// SPDX-License-Identifier: Apache-2.0
// The distances are the library's; the whole greedy choice is one launch. The host waits for nothing.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/nan_to_num.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/ops/max_min_select/max_min_select_arguments.h"
#include "kernels/support/choice_names.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/cosine_matrix_cuda.h"
#include "kernels/support/row_selection_cuda.h"

namespace espalier::ops {
namespace {

constexpr int64_t kByDifferences = 2;  // cdist without matrix products, which lose what tells near rows apart

at::Tensor distance_matrix(const at::Tensor& x, ops::Distance distance) {
  const at::Tensor matrix = distance == ops::Distance::kCosine
                                ? 1.0 - kernels::cosine_matrix_cuda(x)
                                : at::cdist(x, x, distance == ops::Distance::kL1 ? 1.0 : 2.0, kByDifferences);
  return at::nan_to_num(matrix, 0.0).clamp_min_(0.0).contiguous();
}

at::Tensor max_min_select_cuda(const at::Tensor& features, const at::Tensor& block_begin, const at::Tensor& num_kept,
                               std::string_view distance, const std::optional<at::Tensor>& forced) {
  const auto measure = choice_named<Distance>(distance);
  kernels::check_row_selection("max_min_select", features, block_begin, num_kept, forced);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("max_min_select", "library + cuda");
  const at::NoTF32Guard full_precision;
  const at::Tensor x = features.to(at::kFloat).contiguous();
  at::Tensor nearest = at::empty({x.size(0)}, x.options());
  const auto describe = [&](const kernels::SelectionRows& rows, std::vector<at::Tensor>& owned) {
    owned.push_back(distance_matrix(x.narrow(0, rows.begin, rows.size), measure));
    return kernels::DeviceSelectionBlock{.distance = owned.back().const_data_ptr<float>(),
                                         .forced = rows.forced,
                                         .nearest = nearest.mutable_data_ptr<float>() + rows.begin,
                                         .is_picked = rows.is_picked,
                                         .picks = rows.picks,
                                         .begin = rows.begin,
                                         .size = rows.size,
                                         .num_kept = rows.num_kept};
  };
  return kernels::select_rows_cuda<kernels::DeviceSelectionBlocks>(features, block_begin, num_kept, forced, describe,
                                                                   kernels::max_min_select_cuda);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("max_min_select", max_min_select_cuda);
}

}  // namespace espalier::ops
