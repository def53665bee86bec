// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/ops/greedy_dpp/greedy_dpp.h"
#include "kernels/support/cuda/cluster.cuh"

namespace espalier::kernels {
namespace {

// One more row of the factor. The rows before it must be seen by all threads.
__device__ void factorise(const DeviceDppBlock& block, const Cluster& cluster, int64_t pick, int64_t rank,
                          double residual) {
  const double scale = 1.0 / sqrt(residual), relevance = block.relevance[pick];
  for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads()) {
    double value = relevance * block.relevance[i] * block.cosine[pick * block.size + i];
    for (int64_t v = 0; v < rank; ++v) value -= block.factor[v * block.size + pick] * block.factor[v * block.size + i];
    value *= scale;
    block.factor[rank * block.size + i] = value;
    block.residual[i] -= value * value;
  }
}

// One cluster an image. Its thread t owns columns t, t + num_threads, ... of the factor, of residual and of is_picked.
__global__ void __launch_bounds__(kClusterThreads) greedy_dpp_kernel(DeviceDppBlocks blocks, int cluster_blocks) {
  extern __shared__ __align__(16) char shared[];
  Cluster cluster(cluster_blocks, reinterpret_cast<ClusterExchange*>(shared));
  const DeviceDppBlock block = blocks.block[cluster.image()];
  Best largest{0.0, block.size};
  for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads()) {
    const double relevance = block.relevance[i];
    block.residual[i] = relevance * relevance * block.cosine[i * block.size + i];
    block.is_picked[i] = false;
    largest = better(largest, {block.residual[i], i});
  }
  const double smallest = kSmallestResidual * cluster.reduce(largest, better).value;
  int64_t next_forced = 0, rank = 0;
  for (int64_t step = 0; step < block.num_kept; ++step) {
    while (block.forced != nullptr && next_forced < block.size && !block.forced[next_forced]) ++next_forced;
    int64_t pick;
    if (block.forced != nullptr && next_forced < block.size) {
      pick = next_forced++;  // the same in every thread
    } else {
      Best best{-INFINITY, block.size}, relevant{-INFINITY, block.size};
      for (int64_t i = cluster.thread(); i < block.size; i += cluster.num_threads()) {
        if (block.is_picked[i]) continue;
        best = better(best, {block.residual[i], i});
        relevant = better(relevant, {block.relevance[i], i});
      }
      best = cluster.reduce(best, better);
      // One branch for the whole cluster.
      pick = best.value > smallest ? best.index : cluster.reduce(relevant, better).index;
    }
    cluster.sync();  // residuals and rows of the factor are those of all threads
    const double residual = block.residual[pick];
    cluster.sync();  // and it was read, before its owner writes the next
    if (cluster.is_first_thread()) block.picks[step] = block.begin + pick;
    if (residual > smallest) factorise(block, cluster, pick, rank++, residual);
    if (pick % cluster.num_threads() == cluster.thread()) block.is_picked[pick] = true;
  }
}

}  // namespace

cudaError_t greedy_dpp_cuda(const DeviceDppBlocks& blocks, int64_t count, cudaStream_t stream) {
  return launch_for_images(greedy_dpp_kernel, blocks, count, stream);
}

}  // namespace espalier::kernels
