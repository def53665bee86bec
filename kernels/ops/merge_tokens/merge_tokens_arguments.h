// SPDX-License-Identifier: Apache-2.0
// The tensor side of merge_tokens: its checks, which every route into a kernel passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

// Throws unless x is [n, d], index int64 [r], group_begin int64 [k + 1] and weight, if any, float32 [r] (float64 beside
// a float64 x), all on one device. What index and group_begin hold is checked by the backends.
void check_merge_tokens(const at::Tensor& x, const at::Tensor& index, const at::Tensor& group_begin,
                        const std::optional<at::Tensor>& weight);

}  // namespace espalier::kernels
