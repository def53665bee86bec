// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/facility_location_greedy.h"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 1024;

__device__ double larger(double a, double b) {
  return fmax(a, b);
}
__device__ int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// The reduction of v over the block, in every thread.
template <typename V, typename Combine>
__device__ V block_reduce(V v, V* parts, Combine combine) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = combine(v, __shfl_xor_sync(0xffffffffU, v, offset));
  __syncthreads();  // parts may still be read by a call before this one
  if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  v = parts[threadIdx.x % (kThreads / kWarpSize)];
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = combine(v, __shfl_xor_sync(0xffffffffU, v, offset));
  return v;
}

struct Change {
  int64_t row;
  int32_t before, after;
};

// What the picked row changes. Thread t owns rows t, t + kThreads, ... in gain and in cover. The list of changed rows
// comes in any order: sums of integers do not depend on it.
__device__ void take(const DeviceCoverageBlock& block, int64_t pick, Change* changes, int* num_changes) {
  for (int64_t base = 0; base < block.size; base += kThreads) {
    __syncthreads();  // the list may still be read
    if (threadIdx.x == 0) *num_changes = 0;
    __syncthreads();
    const int64_t x = base + threadIdx.x;
    if (x < block.size) {
      const int32_t before = block.cover[x], after = block.similarity[pick * block.size + x];
      if (after > before) {
        changes[atomicAdd(num_changes, 1)] = {x, before, after};
        block.cover[x] = after;
      }
      if (x == pick) block.is_picked[x] = true;
    }
    __syncthreads();
    const int count = *num_changes;
    for (int64_t j = threadIdx.x; j < block.size; j += kThreads) {
      int64_t lost = 0;
      for (int i = 0; i < count; ++i) {
        const Change change = changes[i];
        lost += min(max(block.similarity[change.row * block.size + j], change.before), change.after) - change.before;
      }
      block.gain[j] -= lost;
    }
  }
}

__device__ double score(const DeviceCoverageBlock& block, int64_t j, double step) {
  const double value = step * static_cast<double>(block.gain[j]) + (block.modular == nullptr ? 0.0 : block.modular[j]);
  return isnan(value) ? -INFINITY : value;
}

// One thread block an image.
__global__ void __launch_bounds__(kThreads) greedy_kernel(DeviceCoverageBlocks blocks, double step) {
  __shared__ Change changes[kThreads];
  __shared__ int num_changes;
  __shared__ double score_parts[kThreads / kWarpSize];
  __shared__ int64_t index_parts[kThreads / kWarpSize];
  const DeviceCoverageBlock block = blocks.block[blockIdx.x];
  for (int64_t j = threadIdx.x; j < block.size; j += kThreads) {
    int64_t gain = 0;
    for (int64_t x = 0; x < block.size; ++x) gain += block.similarity[x * block.size + j];
    block.gain[j] = gain;
    block.cover[j] = 0;
    block.is_picked[j] = false;
  }
  int64_t taken = 0;
  for (int64_t j = 0; block.forced != nullptr && j < block.size && taken < block.num_kept; ++j) {
    if (!block.forced[j]) continue;  // the same in every thread
    take(block, j, changes, &num_changes);
    if (threadIdx.x == 0) block.picks[taken] = block.begin + j;
    ++taken;
  }
  for (; taken < block.num_kept; ++taken) {
    double largest = -INFINITY;
    for (int64_t j = threadIdx.x; j < block.size; j += kThreads) {
      if (!block.is_picked[j]) largest = fmax(largest, score(block, j, step));
    }
    largest = block_reduce(largest, score_parts, larger);
    int64_t pick = block.size;
    for (int64_t j = threadIdx.x; j < block.size && pick == block.size; j += kThreads) {
      if (!block.is_picked[j] && score(block, j, step) >= largest - kGainTie) pick = j;
    }
    pick = block_reduce(pick, index_parts, smaller);
    take(block, pick, changes, &num_changes);
    if (threadIdx.x == 0) block.picks[taken] = block.begin + pick;
  }
}

}  // namespace

cudaError_t facility_location_greedy_cuda(const DeviceCoverageBlocks& blocks, int64_t count, double coverage_scale,
                                          cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  greedy_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream>>>(blocks, coverage_scale / kFixedOne);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
