// SPDX-License-Identifier: Apache-2.0
// The AVX-512 part of CosineDirections (cosine_score.h), called only where cpu_level() is kAvx512.
#pragma once

#include <cstdint>

#include "kernels/element_type.h"

namespace espalier::kernels {

// Directions that one pass over a row may serve: their sums and the row's stay in registers.
inline constexpr int64_t kCosineDirections = 4;

// dots[v] = row · direction[v], *square = row · row; direction [num_directions <= 4, d] contiguous.
void row_cosine_sums_avx512(const void* row, ElementType type, int64_t d, const float* direction,
                            int64_t num_directions, float* dots, float* square);

}  // namespace espalier::kernels
