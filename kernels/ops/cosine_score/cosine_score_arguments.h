// SPDX-License-Identifier: Apache-2.0
// The tensor side of cosine_score: its checks, which every route into a kernel passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

void check_cosine_score(const at::Tensor& x, const at::Tensor& direction, const std::optional<at::Tensor>& index);

}  // namespace espalier::kernels
