// SPDX-License-Identifier: Apache-2.0
// The products are the library's: on the tensor cores for bfloat16 and float16, with a float32 result; in float32
// without TF32, which would round the features to 10 bits.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/pairwise_cosine/pairwise_cosine.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::ops {
namespace {

Tensor inverse_norms(const Tensor& t) {
  Tensor inverse = at::empty({t.size(0)}, t.options().dtype(at::kFloat));
  const kernels::Rows rows{{t.const_data_ptr(), t.stride(0), t.size(1), kernels::element_type(t, "pairwise_cosine")},
                           t.size(0)};
  C10_CUDA_CHECK(
      kernels::inverse_norms_cuda(rows, inverse.mutable_data_ptr<float>(), c10::cuda::getCurrentCUDAStream()));
  return inverse;
}

Tensor pairwise_cosine_cuda(const Tensor& x_in, const Tensor& y_in) {
  kernels::check_pairwise_cosine(x_in, y_in);
  kernels::element_type(x_in, "pairwise_cosine");
  const c10::cuda::CUDAGuard guard(x_in.device());
  kernels::note_kernel("pairwise_cosine", "library + cuda");
  const at::NoTF32Guard full_precision;
  if (x_in.size(0) == 0 || y_in.size(0) == 0 || x_in.size(1) == 0)
    return at::zeros({x_in.size(0), y_in.size(0)}, x_in.options().dtype(at::kFloat));
  const Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous(), y = y_in.stride(1) == 1 ? y_in : y_in.contiguous();
  const Tensor x_inverse = inverse_norms(x), y_inverse = inverse_norms(y);
  Tensor out = x.scalar_type() == at::kFloat ? at::mm(x, y.t()) : at::mm(x, y.t(), at::kFloat);
  out = out.contiguous();
  C10_CUDA_CHECK(kernels::scale_products_cuda(out.mutable_data_ptr<float>(), x_inverse.const_data_ptr<float>(),
                                              y_inverse.const_data_ptr<float>(), out.size(0), out.size(1),
                                              c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("pairwise_cosine", pairwise_cosine_cuda);
}

}  // namespace espalier::ops
