// SPDX-License-Identifier: Apache-2.0
// The vector part of CosineDirections (cosine_score.h).
#pragma once

#include <cstdint>

#include "kernels/support/element_type.h"

namespace espalier::kernels {

// Directions that one pass over a row may serve: their sums and the row's stay in registers.
inline constexpr int64_t kCosineDirections = 4;

// dots[v] = row · direction[v], *square = row · row; direction [num_directions <= 4, d] contiguous.
using RowCosineLoop = void(const void* row, ElementType type, int64_t d, const float* direction, int64_t num_directions,
                           float* dots, float* square);
namespace avx2 {
RowCosineLoop row_cosine_sums;
}
namespace avx512 {
RowCosineLoop row_cosine_sums;
}

}  // namespace espalier::kernels
