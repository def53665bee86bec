// SPDX-License-Identifier: Apache-2.0
// Farthest-first choice of rows (greedy max-min diversity) over blocks of rows, on raw pointers: the plain reference in
// double (which tests call), the fast CPU path and the CUDA launcher.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "espalier/op_choices.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// features [size, d] -> picks [num_kept] in the order of picking, distances [num_kept] (may be null): how far each pick
// was from the nearest one before it; of the first, from its nearest neighbour. forced [size] or null: picked before
// all others, in index order. The specification's loop, everything in double.
void max_min_select_plain(const double* features, int64_t size, int64_t d, int64_t num_kept, ops::Distance distance,
                          const bool* forced, int64_t* picks, double* distances);

// Rows begin .. begin + size of the features, and where their picks go: num_kept <= size row numbers, counted from
// `begin`.
struct SelectionBlock {
  int64_t begin, size, num_kept;
  const bool* forced;  // [size] or null
  int64_t* picks;
};

// The same for all blocks, distances in float32, on at::get_num_threads() threads. A distance that is not a number
// counts as 0.
void max_min_select_blocked(const FeatureRows& features, const SelectionBlock* blocks, int64_t count,
                            ops::Distance distance, CpuLevel level);

// Sums of |x - y| or (x - y)² over d floats.
using RowDifferenceLoop = float(const float* x, const float* y, int64_t d, bool is_squared);
namespace avx2 {
RowDifferenceLoop row_difference;
}
namespace avx512 {
RowDifferenceLoop row_difference;
}

#ifdef ESPALIER_HAS_CUDA
// One block on the device; `nearest` and `is_picked` are overwritten.
struct DeviceSelectionBlock {
  const float* distance;  // [size, size]
  const bool* forced;     // [size] or null
  float* nearest;         // [size]: distance to the nearest pick
  bool* is_picked;        // [size]
  int64_t* picks;         // [num_kept], row numbers of all features
  int64_t begin, size, num_kept;
};
struct DeviceSelectionBlocks {
  static constexpr int64_t kMaxBlocks = 40;
  DeviceSelectionBlock block[kMaxBlocks];
};
// One launch, a thread-block cluster each (kernels/support/cuda/cluster.cuh), the whole choice inside.
cudaError_t max_min_select_cuda(const DeviceSelectionBlocks& blocks, int64_t count, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
