// SPDX-License-Identifier: Apache-2.0
// The tensor side of facility_location_greedy: its checks, which every route into a kernel passes, and the step to raw
// pointers.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"
#include "kernels/support/row_arguments.h"

namespace espalier::kernels {

// "affine", "clamp" or "minmax".
CosineMap cosine_map(std::string_view name);

void check_facility_location_greedy(const at::Tensor& features, const at::Tensor& block_begin,
                                    const at::Tensor& num_kept, std::string_view similarity,
                                    const std::optional<at::Tensor>& modular, const std::optional<at::Tensor>& forced);

// How many rows are picked from all blocks together.
int64_t total_kept(const at::Tensor& num_kept);

}  // namespace espalier::kernels
