// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "kernels/ops/attention_growth/attention_growth.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

at::Tensor attention_growth_cuda(const at::Tensor& query_lower, const at::Tensor& key_lower,
                                 const at::Tensor& lse_lower, const at::Tensor& query_upper,
                                 const at::Tensor& key_upper, const at::Tensor& lse_upper, const at::Tensor& rows,
                                 const at::Tensor& row_begin, const at::Tensor& columns, const at::Tensor& column_begin,
                                 double scale, bool relu_per_head, int64_t window,
                                 const std::optional<at::Tensor>& position, const std::optional<at::Tensor>& hidden,
                                 const std::optional<at::Tensor>& direction, double cosine_weight,
                                 const std::optional<at::Tensor>& own_key) {
  kernels::note_kernel("attention_growth", "cuda");
  const c10::cuda::CUDAGuard guard(query_lower.device());
  const kernels::LayerPointers lower("attention_growth", query_lower, key_lower, lse_lower);
  const kernels::LayerPointers upper("attention_growth", query_upper, key_upper, lse_upper);
  const kernels::GroupPointers groups("attention_growth", query_lower, key_lower, rows, row_begin, columns,
                                      column_begin, scale,
                                      /*is_causal=*/true, window, position, own_key);
  kernels::check_growth(query_lower, key_lower, query_upper, key_upper, row_begin, hidden, direction);
  const kernels::DirectionPointers pointers(hidden, direction, cosine_weight);
  at::Tensor out = at::empty({columns.size(0)}, lse_lower.options());
  C10_CUDA_CHECK(kernels::attention_growth_cuda(lower.layer, upper.layer, groups.shape, relu_per_head,
                                                pointers.direction, out.mutable_data_ptr<float>(),
                                                c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("attention_growth", attention_growth_cuda);
}

}  // namespace espalier::ops
