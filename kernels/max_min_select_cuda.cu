// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/max_min_select.h"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 1024;

// One thread block an image. Thread t owns rows t, t + kThreads, ... in nearest and is_picked.
__global__ void __launch_bounds__(kThreads) farthest_first_kernel(DeviceSelectionBlocks blocks) {
  const DeviceSelectionBlock block = blocks.block[blockIdx.x];
  for (int64_t i = threadIdx.x; i < block.size; i += kThreads) {
    float nearest = INFINITY;
    for (int64_t j = 0; j < block.size; ++j)
      if (j != i) nearest = fminf(nearest, block.distance[j * block.size + i]);
    block.nearest[i] = nearest;
    block.is_picked[i] = false;
  }
  int64_t next_forced = 0;
  for (int64_t step = 0; step < block.num_kept; ++step) {
    while (block.forced != nullptr && next_forced < block.size && !block.forced[next_forced]) ++next_forced;
    int64_t pick;
    if (block.forced != nullptr && next_forced < block.size) {
      pick = next_forced++;  // the same in every thread
    } else {
      Best best{-INFINITY, block.size};
      for (int64_t i = threadIdx.x; i < block.size; i += kThreads)
        if (!block.is_picked[i]) best = better(best, {block.nearest[i], i});
      pick = block_best(best).index;
    }
    if (threadIdx.x == 0) block.picks[step] = block.begin + pick;
    for (int64_t i = threadIdx.x; i < block.size; i += kThreads) {
      const float distance = block.distance[pick * block.size + i];
      block.nearest[i] = step == 0 ? distance : fminf(block.nearest[i], distance);
      if (i == pick) block.is_picked[i] = true;
    }
  }
}

}  // namespace

cudaError_t max_min_select_cuda(const DeviceSelectionBlocks& blocks, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  farthest_first_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(blocks);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
