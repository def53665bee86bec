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
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/chosen_kernels.h"
#include "kernels/facility_location_greedy.h"
#include "kernels/facility_location_greedy_arguments.h"

namespace espalier::ops {
namespace {

// unit: rows of length 1 (or 0), float32 [size, d] -> int32 [size, size] in multiples of 2^-23.
at::Tensor fixed_similarities(const at::Tensor& unit, kernels::CosineMap map) {
  at::Tensor similarity = at::nan_to_num(at::matmul(unit, unit.t()), -1.0).clamp_(-1.0, 1.0);
  if (map == kernels::CosineMap::kAffine) similarity.add_(1.0).mul_(0.5);
  if (map == kernels::CosineMap::kClamp) similarity.clamp_min_(0.0);
  if (map == kernels::CosineMap::kMinmax) {
    const at::Tensor low = similarity.min(), range = similarity.max() - low;
    similarity = at::where(range < 1e-12, at::full_like(similarity, 0.5), (similarity - low) / range);
  }
  return similarity.mul_(kernels::kFixedOne).round_().to(at::kInt);
}

at::Tensor unit_rows(const at::Tensor& features) {
  const at::Tensor x = features.to(at::kFloat);
  const at::Tensor norm = (x * x).sum(1, true).sqrt_();
  return at::where(norm < 1e-12, x * 0.0, x / norm);
}

at::Tensor facility_location_greedy_cuda(const at::Tensor& features, const at::Tensor& block_begin_in,
                                         const at::Tensor& num_kept_in, std::string_view similarity,
                                         double coverage_scale, const std::optional<at::Tensor>& modular_in,
                                         const std::optional<at::Tensor>& forced_in) {
  kernels::check_facility_location_greedy(features, block_begin_in, num_kept_in, similarity, modular_in, forced_in);
  const c10::cuda::CUDAGuard guard(features.device());
  kernels::note_kernel("facility_location_greedy", "library + cuda");
  const at::NoTF32Guard full_precision;  // TF32 would round the features to 10 bits
  const at::Tensor block_begin = block_begin_in.contiguous(), num_kept = num_kept_in.contiguous();
  const at::Tensor modular = modular_in.has_value() && modular_in->defined() ? modular_in->contiguous() : at::Tensor();
  const at::Tensor forced = forced_in.has_value() && forced_in->defined() ? forced_in->contiguous() : at::Tensor();
  const at::Tensor unit = unit_rows(features);
  at::Tensor out = at::empty({kernels::total_kept(num_kept)}, features.options().dtype(at::kLong));
  at::Tensor gain = at::empty({features.size(0)}, out.options());
  at::Tensor cover = at::empty({features.size(0)}, out.options().dtype(at::kInt));
  at::Tensor is_picked = at::empty({features.size(0)}, out.options().dtype(at::kBool));
  const int64_t* begins = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  int64_t* picks = out.mutable_data_ptr<int64_t>();
  for (int64_t next = 0; next < num_kept.numel();) {
    kernels::DeviceCoverageBlocks blocks{};
    std::vector<at::Tensor> matrices;
    for (; next < num_kept.numel() && static_cast<int64_t>(matrices.size()) < kernels::DeviceCoverageBlocks::kMaxBlocks;
         ++next) {
      const int64_t begin = begins[next], size = begins[next + 1] - begin;
      if (kept[next] == 0) continue;
      matrices.push_back(
          fixed_similarities(unit.slice(0, begin, begin + size), kernels::cosine_map(similarity)).contiguous());
      blocks.block[matrices.size() - 1] = {matrices.back().const_data_ptr<int32_t>(),
                                           modular.defined() ? modular.const_data_ptr<float>() + begin : nullptr,
                                           forced.defined() ? forced.const_data_ptr<bool>() + begin : nullptr,
                                           gain.mutable_data_ptr<int64_t>() + begin,
                                           cover.mutable_data_ptr<int32_t>() + begin,
                                           is_picked.mutable_data_ptr<bool>() + begin,
                                           picks,
                                           begin,
                                           size,
                                           kept[next]};
      picks += kept[next];
    }
    C10_CUDA_CHECK(kernels::facility_location_greedy_cuda(blocks, static_cast<int64_t>(matrices.size()), coverage_scale,
                                                          c10::cuda::getCurrentCUDAStream()));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("facility_location_greedy", facility_location_greedy_cuda);
}

}  // namespace espalier::ops
