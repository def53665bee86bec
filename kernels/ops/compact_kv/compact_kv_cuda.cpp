// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/compact_kv/compact_kv.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

Tensor compact(const Tensor& cache, const Tensor& index) {
  const int64_t sizes[] = {index.size(-1), cache.size(1), cache.size(2)};
  Tensor out = at::empty(sizes, cache.options());
  if (out.numel() == 0) return out;
  TORCH_CHECK_INDEX(cache.size(0) > 0, "compact_kv: ", index.size(-1), " rows kept of a cache without rows");
  const Tensor rows = cache.stride(2) == 1 ? cache : cache.contiguous();
  const int64_t element = cache.element_size();
  const kernels::KvShape shape{index.size(-1),           rows.size(1),
                               rows.size(2) * element,   rows.stride(0) * element,
                               rows.stride(1) * element, index.dim() == 1 ? 0 : index.size(1)};
  C10_CUDA_CHECK(kernels::compact_kv_cuda(rows.const_data_ptr(), index.const_data_ptr<int64_t>(),
                                          out.mutable_data_ptr(), shape, cache.size(0),
                                          c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::tuple<Tensor, Tensor> compact_kv_cuda(const Tensor& key, const Tensor& value, const Tensor& index) {
  kernels::check_compact_kv(key, value, index);
  const c10::cuda::CUDAGuard guard(key.device());
  kernels::note_kernel("compact_kv", "cuda");
  const Tensor choice = index.contiguous();
  return {compact(key, choice), compact(value, choice)};
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("compact_kv", compact_kv_cuda);
}

}  // namespace espalier::ops
