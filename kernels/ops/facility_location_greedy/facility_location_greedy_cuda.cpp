// SPDX-License-Identifier: Apache-2.0
// The similarities are matrix products of the library; the whole greedy choice is one launch. The host waits for
// nothing.
#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/where.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"
#include "kernels/ops/facility_location_greedy/facility_location_greedy_arguments.h"
#include "kernels/support/choice_names.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/row_selection_cuda.h"

namespace espalier::ops {
namespace {

// unit: rows of length 1 (or 0), float32 [size, d] -> int32 [size, size] in multiples of 2^-23.
at::Tensor fixed_similarities(const at::Tensor& unit, ops::Similarity map) {
  const at::Tensor cosine = at::matmul(unit, unit.t());
  if (map != ops::Similarity::kMinmax) {
    C10_CUDA_CHECK(kernels::fix_similarities_cuda(cosine.mutable_data_ptr<float>(), cosine.numel(), map,
                                                  c10::cuda::getCurrentCUDAStream()));
    return cosine.view(at::kInt);
  }
  const at::Tensor similarity = at::nan_to_num(cosine, -1.0).clamp_(-1.0, 1.0);
  const at::Tensor low = similarity.min(), range = similarity.max() - low;
  return at::where(range < 1e-12, at::full_like(similarity, 0.5), (similarity - low) / range)
      .mul_(kernels::kFixedOne)
      .round_()
      .to(at::kInt);
}

at::Tensor unit_rows(const at::Tensor& features) {
  const at::Tensor x = features.to(at::kFloat);
  const at::Tensor norm = (x * x).sum(1, true).sqrt_();
  return at::where(norm < 1e-12, x * 0.0, x / norm);
}

at::Tensor facility_location_greedy_cuda(const at::Tensor& features, const at::Tensor& block_begin,
                                         const at::Tensor& num_kept, std::string_view similarity, double coverage_scale,
                                         const std::optional<at::Tensor>& modular_in,
                                         const std::optional<at::Tensor>& forced) {
  const auto map = choice_named<Similarity>(similarity);
  kernels::check_facility_location_greedy(features, block_begin, num_kept, modular_in, forced);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("facility_location_greedy", "library + cuda");
  const at::NoTF32Guard full_precision;  // TF32 would round the features to 10 bits
  const at::Tensor modular = modular_in.has_value() && modular_in->defined() ? modular_in->contiguous() : at::Tensor();
  const at::Tensor unit = unit_rows(features);
  at::Tensor gain = at::empty({features.size(0)}, features.options().dtype(at::kLong));
  at::Tensor cover = at::empty({features.size(0)}, features.options().dtype(at::kInt));
  const auto describe = [&](const kernels::SelectionRows& rows, std::vector<at::Tensor>& owned) {
    const at::Tensor own = unit.narrow(0, rows.begin, rows.size);
    owned.push_back(fixed_similarities(own, map).contiguous());
    return kernels::DeviceCoverageBlock{
        .similarity = owned.back().const_data_ptr<int32_t>(),
        .modular = modular.defined() ? modular.const_data_ptr<float>() + rows.begin : nullptr,
        .forced = rows.forced,
        .gain = gain.mutable_data_ptr<int64_t>() + rows.begin,
        .cover = cover.mutable_data_ptr<int32_t>() + rows.begin,
        .is_picked = rows.is_picked,
        .picks = rows.picks,
        .begin = rows.begin,
        .size = rows.size,
        .num_kept = rows.num_kept};
  };
  const auto launch = [&](const kernels::DeviceCoverageBlocks& blocks, int64_t count, cudaStream_t stream) {
    return kernels::facility_location_greedy_cuda(blocks, count, coverage_scale, stream);
  };
  return kernels::select_rows_cuda<kernels::DeviceCoverageBlocks>(features, block_begin, num_kept, forced, describe,
                                                                  launch);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("facility_location_greedy", facility_location_greedy_cuda);
}

}  // namespace espalier::ops
