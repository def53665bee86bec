// SPDX-License-Identifier: Apache-2.0
// The tensor side that merge_states' devices share: from checked arguments to the pointers of merge_states.h.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/ops/merge_states/merge_states.h"

namespace espalier::ops {

// New results and, over the inputs' memory, the problem that kernels take. Keeps alive the copies made of inputs that
// do not fit.
struct MergeStatesTensors {
  at::Tensor output_a, lse_a, output_b, lse_b, output, lse;
  kernels::MergeStatesProblem problem;

  MergeStatesTensors(const at::Tensor& output_a, const at::Tensor& lse_a, const at::Tensor& output_b,
                     const at::Tensor& lse_b);
};

}  // namespace espalier::ops
