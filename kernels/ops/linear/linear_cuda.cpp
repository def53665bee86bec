// SPDX-License-Identifier: Apache-2.0
// On CUDA cuBLAS serves any number of rows.
#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "espalier/ops.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::ops {
namespace {

Tensor linear_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  kernels::check_linear(x, weight, bias);
  kernels::note_kernel("linear", "library");
  return at::linear(x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CUDA, m) {
  m.impl("linear", linear_cuda);
}

}  // namespace espalier::ops
