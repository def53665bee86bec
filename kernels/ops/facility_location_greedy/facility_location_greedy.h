// SPDX-License-Identifier: Apache-2.0
// Greedy maximisation of coverage plus a modular term over one block of rows, on raw pointers: the plain reference in
// double (which tests call), the fast CPU path and the CUDA launcher.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "espalier/op_choices.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// A candidate wins when its gain is at least the largest minus this; among those the lowest index.
inline constexpr double kGainTie = 1e-9;

// The objective of one block of `size` rows: coverage_scale · sum_x max_{y picked} sim(x, y) + sum_{y picked}
// modular[y].
struct CoverageObjective {
  ops::Similarity map = ops::Similarity::kAffine;
  double coverage_scale = 1.0;
  const float* modular = nullptr;  // [size], or null for 0
  const bool* forced = nullptr;    // [size], or null for none: picked before all others, in index order
};

// features [size, d] -> picks [num_kept] in the order of picking, gains [num_kept] (may be null): what each pick added
// to the objective. The specification's loop, everything in double.
void facility_location_greedy_plain(const double* features, int64_t size, int64_t d, int64_t num_kept,
                                    const CoverageObjective& objective, int64_t* picks, double* gains);

// Rows begin .. begin + size of the features, and where their picks go: num_kept <= size row numbers, counted from
// `begin`.
struct CoverageBlock {
  int64_t begin, size, num_kept;
  CoverageObjective objective;
  int64_t* picks;
};

// The same order for all blocks, on at::get_num_threads() threads; cosines in float32.
void facility_location_greedy_blocked(const FeatureRows& features, const CoverageBlock* blocks, int64_t count,
                                      CpuLevel level);

// Similarity 1 in the fixed point of the fast paths: multiples of 2^-23, the step of float32 just below 1.
inline constexpr float kFixedOne = 0x1p23F;

#ifdef ESPALIER_HAS_CUDA
// One block on the device. The greedy choice keeps its state in `gain`, `cover` and `is_picked` where shared memory is
// too small for it (images of more than 12,000 rows on devices without thread-block clusters).
struct DeviceCoverageBlock {
  const int32_t* similarity;  // [size, size], symmetric, fixed point
  const float* modular;       // [size] or null
  const bool* forced;         // [size] or null
  int64_t* gain;              // [size], overwritten
  int32_t* cover;             // [size], overwritten
  bool* is_picked;            // [size], overwritten
  int64_t* picks;             // [num_kept], row numbers of all features
  int64_t begin, size, num_kept;
};
struct DeviceCoverageBlocks {
  static constexpr int64_t kMaxBlocks = 40;
  DeviceCoverageBlock block[kMaxBlocks];
};
// In place: `count` cosines as similarities in fixed point, for a map that needs no other cosine (not kMinmax). A
// cosine that is not a number counts as -1.
cudaError_t fix_similarities_cuda(float* cosine, int64_t count, ops::Similarity map, cudaStream_t stream);
// One launch, a thread-block cluster an image (kernels/support/cuda/cluster.cuh), the whole choice inside.
cudaError_t facility_location_greedy_cuda(const DeviceCoverageBlocks& blocks, int64_t count, double coverage_scale,
                                          cudaStream_t stream);
#endif

}  // namespace espalier::kernels
