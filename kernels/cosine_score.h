// SPDX-License-Identifier: Apache-2.0
// Cosines of chosen rows with a few directions on raw pointers: the plain reference (which tests call), the fast CPU
// path and the CUDA launcher.
#pragma once

#include <cstdint>

#include "kernels/row_dots.h"

namespace espalier::kernels {

// A row shorter than this has cosine 0 with everything.
inline constexpr float kSmallestNorm = 1e-12F;

// out[v, i] = cos(x[index[i]], direction[v]); x rows lie `stride` elements apart, direction [num_directions, d]
// contiguous, `index` null: all rows 0 .. count - 1. Sums in float32.
void cosine_score_plain(const void* x, int64_t stride, ElementType type, const float* direction, const int64_t* index,
                        int64_t count, int64_t num_directions, int64_t d, float* out);

}  // namespace espalier::kernels
