// SPDX-License-Identifier: Apache-2.0
// What facility_location_greedy checks before it takes raw pointers, on every route into a kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"

namespace espalier::kernels {

// As check_row_selection; modular float32 [m]. Returns how many rows are picked from all blocks together.
int64_t check_facility_location_greedy(const at::Tensor& features, const at::Tensor& block_begin,
                                       const at::Tensor& num_kept, const std::optional<at::Tensor>& modular,
                                       const std::optional<at::Tensor>& forced);

}  // namespace espalier::kernels
