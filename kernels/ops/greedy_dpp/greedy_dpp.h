// SPDX-License-Identifier: Apache-2.0
// Greedy choice of the rows with the largest determinant (MAP of a determinantal point process) over blocks of rows, on
// raw pointers: the plain reference in double (which tests call), the fast CPU path and the CUDA launcher.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// The choice ends where the largest residual is at most this part of the largest one at the start: float32 cosines do
// not resolve more.
inline constexpr double kSmallestResidual = 1e-6;

// Kernel L_ij = r_i · cos(x_i, x_j) · r_j. features [size, d], relevance [size] -> picks [num_kept] in the order of
// picking, residuals [num_kept] (may be null): det(L of the picks so far) / det(L of those before), 0 for picks that
// only fill up: by falling relevance, where nothing is left to gain. forced [size] or null: picked before all others,
// in index order. The specification's choice, everything in double.
void greedy_dpp_plain(const double* features, const float* relevance, int64_t size, int64_t d, int64_t num_kept,
                      const bool* forced, int64_t* picks, double* residuals);

// Rows begin .. begin + size of the features, and where their picks go: num_kept <= size row numbers, counted from
// `begin`.
struct DppBlock {
  int64_t begin, size, num_kept;
  const float* relevance;  // [size]
  const bool* forced;      // [size] or null
  int64_t* picks;
};

// The same for all blocks, cosines in float32, on at::get_num_threads() threads. Relevance that is not a number is 0.
void greedy_dpp_blocked(const FeatureRows& features, const DppBlock* blocks, int64_t count, CpuLevel level);

#ifdef ESPALIER_HAS_CUDA
// One block on the device; factor, residual and is_picked are overwritten.
struct DeviceDppBlock {
  const float* cosine;     // [size, size]
  const float* relevance;  // [size]
  const bool* forced;      // [size] or null
  double* factor;          // [num_kept, size]: rows of the Cholesky factor
  double* residual;        // [size]
  bool* is_picked;         // [size]
  int64_t* picks;          // [num_kept], row numbers of all features
  int64_t begin, size, num_kept;
};
struct DeviceDppBlocks {
  static constexpr int64_t kMaxBlocks = 32;
  DeviceDppBlock block[kMaxBlocks];
};
// One launch, a thread-block cluster each (kernels/support/cuda/cluster.cuh), the whole choice inside.
cudaError_t greedy_dpp_cuda(const DeviceDppBlocks& blocks, int64_t count, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
