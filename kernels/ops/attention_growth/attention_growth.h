// SPDX-License-Identifier: Apache-2.0
// Growth of attention from one layer to the next on raw pointers: the plain reference (which tests call), the blocked
// CPU path and the CUDA launcher. The description of layers and groups is attention_probe.h's.
#pragma once

#include <cstdint>

#include "kernels/ops/attention_probe/attention_probe.h"

namespace espalier::kernels {

// out[c] += weight · cos(hidden[column], direction[group]); nothing is added without hidden.
struct GrowthDirection {
  const void* hidden = nullptr;  // [nk, width]
  int64_t hidden_stride = 0;     // elements from token to token
  ElementType hidden_type = ElementType::kFloat32;
  const float* direction = nullptr;  // [groups, width]
  int64_t width = 0;
  float weight = 0.0F;
};

// out [c] = max(0, mean over heads and rows of upper - lower), or the mean of the differences clipped one by one
// (relu_per_head).
void attention_growth_plain(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                            bool relu_per_head, const GrowthDirection& direction, float* out);

// The same in blocks of rows and columns, on at::get_num_threads() threads.
void attention_growth_blocked(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                              bool relu_per_head, const GrowthDirection& direction, CpuLevel level, float* out);

#ifdef ESPALIER_HAS_CUDA
// attention_growth_plain on the device, in one launch: all of `shape` there but row_begin and column_begin.
cudaError_t attention_growth_cuda(const ProbeLayer& lower, const ProbeLayer& upper, const ProbeShape& shape,
                                  bool relu_per_head, const GrowthDirection& direction, float* out,
                                  cudaStream_t stream);
#endif

}  // namespace espalier::kernels
