// SPDX-License-Identifier: Apache-2.0
// The vector part of ProbabilityTile (attention_probe_tile.h).
#pragma once

#include <cstdint>

namespace espalier::kernels {

// lines [num_lines, 48], in place: exp(scale · line - lse[line]); 0 in lines whose lse is -inf.
using ExponentiateLoop = void(float* lines, int64_t num_lines, const float* lse, float scale);
namespace avx2 {
ExponentiateLoop exponentiate;
}
namespace avx512 {
ExponentiateLoop exponentiate;
}

}  // namespace espalier::kernels
