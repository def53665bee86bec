// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/support/cuda/cluster.cuh"

namespace espalier::kernels {
namespace {

// One cluster an image. Its thread t owns rows t, t + num_threads, ... in nearest and is_picked.
__global__ void __launch_bounds__(kClusterThreads)
    farthest_first_kernel(DeviceSelectionBlocks blocks, int cluster_blocks) {
  extern __shared__ __align__(16) char shared[];
  Cluster cluster(cluster_blocks, reinterpret_cast<ClusterExchange*>(shared));
  const DeviceSelectionBlock block = blocks.block[cluster.image()];
  for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads()) {
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
      for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads())
        if (!block.is_picked[i]) best = better(best, {block.nearest[i], i});
      pick = cluster.reduce(best, better).index;
    }
    if (cluster.is_first_thread()) block.picks[step] = block.begin + pick;
    for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads()) {
      const float distance = block.distance[pick * block.size + i];
      block.nearest[i] = step == 0 ? distance : fminf(block.nearest[i], distance);
      if (i == pick) block.is_picked[i] = true;
    }
  }
}

}  // namespace

cudaError_t max_min_select_cuda(const DeviceSelectionBlocks& blocks, int64_t count, cudaStream_t stream) {
  return launch_for_images(farthest_first_kernel, blocks, count, stream);
}

}  // namespace espalier::kernels
