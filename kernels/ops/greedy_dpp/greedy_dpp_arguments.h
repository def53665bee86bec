// SPDX-License-Identifier: Apache-2.0
// The checks of greedy_dpp, which every route into a kernel passes.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/ops/max_min_select/max_min_select_arguments.h"

namespace espalier::kernels {

// As check_row_selection; relevance float32 [m].
int64_t check_greedy_dpp(const at::Tensor& features, const at::Tensor& relevance, const at::Tensor& block_begin,
                         const at::Tensor& num_kept, const std::optional<at::Tensor>& forced);

}  // namespace espalier::kernels
