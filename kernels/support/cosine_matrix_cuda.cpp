// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/cosine_matrix_cuda.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace espalier::kernels {

at::Tensor cosine_matrix_cuda(const at::Tensor& x) {
  const at::Tensor products = at::matmul(x, x.t()).to(at::kDouble);
  const at::Tensor norm = products.diagonal().sqrt();
  const at::Tensor is_short = (norm >= 1e-12).logical_and(norm.isfinite()).logical_not();
  const at::Tensor inverse = norm.reciprocal().masked_fill_(is_short, 0.0);
  const at::Tensor scale = inverse.unsqueeze(1) * inverse.unsqueeze(0);
  return at::where(scale == 0.0, at::zeros_like(products), (products * scale).clamp_(-1.0, 1.0)).to(at::kFloat);
}

}  // namespace espalier::kernels
