// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/greedy_dpp.h"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 1024;

// One more row of the factor. Thread t owns columns t, t + kThreads, ... of it and of the residual.
__device__ void factorise(const DeviceDppBlock& block, int64_t pick, int64_t rank, double residual) {
  const double scale = 1.0 / sqrt(residual), relevance = block.relevance[pick];
  __syncthreads();  // every thread's part of the rows before is there, and `residual` was read
  for (int64_t i = threadIdx.x; i < block.size; i += kThreads) {
    double value = relevance * block.relevance[i] * block.cosine[pick * block.size + i];
    for (int64_t v = 0; v < rank; ++v) value -= block.factor[v * block.size + pick] * block.factor[v * block.size + i];
    value *= scale;
    block.factor[rank * block.size + i] = value;
    block.residual[i] -= value * value;
  }
}

// One thread block an image.
__global__ void __launch_bounds__(kThreads) greedy_dpp_kernel(DeviceDppBlocks blocks) {
  const DeviceDppBlock block = blocks.block[blockIdx.x];
  Best largest{0.0, block.size};
  for (int64_t i = threadIdx.x; i < block.size; i += kThreads) {
    const double relevance = block.relevance[i];
    block.residual[i] = relevance * relevance * block.cosine[i * block.size + i];
    block.is_picked[i] = false;
    largest = better(largest, {block.residual[i], i});
  }
  const double smallest = kSmallestResidual * block_best(largest).value;
  int64_t next_forced = 0, rank = 0;
  for (int64_t step = 0; step < block.num_kept; ++step) {
    while (block.forced != nullptr && next_forced < block.size && !block.forced[next_forced]) ++next_forced;
    int64_t pick;
    if (block.forced != nullptr && next_forced < block.size) {
      pick = next_forced++;  // the same in every thread
    } else {
      Best best{-INFINITY, block.size}, relevant{-INFINITY, block.size};
      for (int64_t i = threadIdx.x; i < block.size; i += kThreads) {
        if (block.is_picked[i]) continue;
        best = better(best, {block.residual[i], i});
        relevant = better(relevant, {block.relevance[i], i});
      }
      best = block_best(best);
      pick = best.value > smallest ? best.index : block_best(relevant).index;  // one branch for the whole block
    }
    __syncthreads();  // residuals are those of all threads
    const double residual = block.residual[pick];
    if (threadIdx.x == 0) block.picks[step] = block.begin + pick;
    if (residual > smallest) factorise(block, pick, rank++, residual);
    if (pick % kThreads == threadIdx.x) block.is_picked[pick] = true;
  }
}

}  // namespace

cudaError_t greedy_dpp_cuda(const DeviceDppBlocks& blocks, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  greedy_dpp_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(blocks);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
