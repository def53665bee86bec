// SPDX-License-Identifier: Apache-2.0
// The AVX-512 part of ProbabilityTile (attention_probe_tile.h), called only where cpu_level() is kAvx512.
#pragma once

#include <cstdint>

namespace espalier::kernels {

// lines [num_lines, 48], in place: exp(scale · line - lse[line]); 0 in lines whose lse is -inf.
void exponentiate_avx512(float* lines, int64_t num_lines, const float* lse, float scale);

}  // namespace espalier::kernels
