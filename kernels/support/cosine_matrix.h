// SPDX-License-Identifier: Apache-2.0
// All cosines between the rows of one block, for ops that choose rows by how they differ. Rows that are equal bit for
// bit have cosine 1 exactly and equal cosines with every other row, so that ties are ties.
#pragma once

#include <cstdint>

#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// out [size, size]: cosines of the rows begin .. begin + size, float32. A row whose norm is below 1e-12 (or is not a
// number) has cosine 0 with every row, itself included. On at::get_num_threads() threads.
void cosine_matrix(const FeatureRows& features, int64_t begin, int64_t size, CpuLevel level, float* out);

}  // namespace espalier::kernels
