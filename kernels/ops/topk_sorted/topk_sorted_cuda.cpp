// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>

#include "espalier/ops.h"
#include "kernels/ops/topk_sorted/topk_sorted.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

// The blocks travel as kernel arguments: no copy to the device, no wait.
Tensor topk_sorted_cuda(const Tensor& scores, const Tensor& block_begin, const Tensor& num_kept) {
  const int64_t total = kernels::check_topk_sorted(scores, block_begin, num_kept);
  TORCH_CHECK(scores.size(0) <= std::numeric_limits<int32_t>::max(),
              "topk_sorted: at most 2^31 - 1 scores on CUDA, got ", scores.size(0));
  const c10::cuda::CUDAGuard guard(scores.device());
  kernels::note_kernel("topk_sorted", "cuda");
  Tensor out = at::empty({total}, scores.options().dtype(at::kLong));
  if (total == 0) return out;
  const Tensor row = scores.contiguous();
  const int64_t* begin = block_begin.const_data_ptr<int64_t>();
  const int64_t* kept = num_kept.const_data_ptr<int64_t>();
  int64_t out_begin = 0;
  for (int64_t first = 0; first < num_kept.size(0); first += kernels::TopkBlocks::kMaxBlocks) {
    const int64_t count = std::min(num_kept.size(0) - first, kernels::TopkBlocks::kMaxBlocks);
    kernels::TopkBlocks blocks{};
    for (int64_t i = 0; i < count; out_begin += kept[first + i++])
      blocks.block[i] = {begin[first + i], begin[first + i + 1] - begin[first + i], kept[first + i], out_begin};
    C10_CUDA_CHECK(kernels::topk_sorted_cuda(row.const_data_ptr<float>(), out.mutable_data_ptr<int64_t>(), blocks,
                                             count, c10::cuda::getCurrentCUDAStream()));
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("topk_sorted", topk_sorted_cuda);
}

}  // namespace espalier::ops
