// SPDX-License-Identifier: Apache-2.0
// What the greedy selections (max_min_select, greedy_dpp, facility_location_greedy) check alike before they take raw
// pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

// features [m, d], block_begin [b + 1] and num_kept [b] on the CPU, each number at most its block's rows; forced bool
// [m]. Returns how many rows are picked from all blocks together.
int64_t check_row_selection(const char* op, const at::Tensor& features, const at::Tensor& block_begin,
                            const at::Tensor& num_kept, const std::optional<at::Tensor>& forced);

}  // namespace espalier::kernels
