// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/gather_rows/gather_rows.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

Tensor gather_rows_cuda(const Tensor& x, const Tensor& index) {
  kernels::check_gather_rows(x, index);
  const c10::cuda::CUDAGuard guard(x.device());
  kernels::note_kernel("gather_rows", "cuda");
  auto sizes = x.sizes().vec();
  sizes[0] = index.size(0);
  Tensor out = at::empty(sizes, x.options());
  if (out.numel() == 0) return out;
  TORCH_CHECK_INDEX(x.size(0) > 0, "gather_rows: ", index.size(0), " indices into a tensor without rows");
  const Tensor order = index.contiguous();
  const Tensor rows = x.select(0, 0).is_contiguous() ? x : x.contiguous();
  const int64_t element = x.element_size();
  const kernels::RowBytes shape{out.numel() / out.size(0) * element, rows.stride(0) * element};
  C10_CUDA_CHECK(kernels::gather_rows_cuda(rows.const_data_ptr(), order.const_data_ptr<int64_t>(),
                                           out.mutable_data_ptr(), shape, x.size(0), out.size(0),
                                           c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("gather_rows", gather_rows_cuda);
}

}  // namespace espalier::ops
