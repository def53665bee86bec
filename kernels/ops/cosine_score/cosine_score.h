// SPDX-License-Identifier: Apache-2.0
// Cosines of chosen rows with a few directions on raw pointers: the plain reference (which tests call), the fast CPU
// path and the CUDA launcher.
#pragma once

#include <cstdint>
#include <vector>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "kernels/support/cpu_level.h"
#include "kernels/support/row_dots.h"

namespace espalier::kernels {

// A row shorter than this has cosine 0 with everything.
inline constexpr float kSmallestNorm = 1e-12F;

// out[v, i] = cos(x[index[i]], direction[v]); x rows lie `stride` elements apart, direction [num_directions, d]
// contiguous, `index` null: all rows 0 .. count - 1. Sums in float32.
void cosine_score_plain(const void* x, int64_t stride, ElementType type, const float* direction, const int64_t* index,
                        int64_t count, int64_t num_directions, int64_t d, float* out);

// 1 / |row|, 0 for a row shorter than kSmallestNorm.
float inverse_norm(const void* row, ElementType type, int64_t d, CpuLevel level);

// The same, faster: directions [num_directions, d] with their norms taken once, then any rows, read once each.
class CosineDirections {
 public:
  CosineDirections(const float* direction, int64_t num_directions, int64_t d, CpuLevel level);

  // out[v * out_stride + i] for i in first .. last, as above.
  void score(const void* x, int64_t stride, ElementType type, const int64_t* index, int64_t first, int64_t last,
             float* out, int64_t out_stride) const;

 private:
  const float* direction_;
  int64_t num_directions_, d_;
  CpuLevel level_;
  std::vector<float> inverse_norm_;  // 0 for a direction too short
};

#ifdef ESPALIER_HAS_CUDA
// cosine_score_plain on the device.
cudaError_t cosine_score_cuda(const void* x, int64_t stride, ElementType type, const float* direction,
                              const int64_t* index, int64_t count, int64_t num_directions, int64_t d, float* out,
                              cudaStream_t stream);
#endif

}  // namespace espalier::kernels
