// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "kernels/cuda/reduce.cuh"
#include "kernels/facility_location_greedy.h"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 1024;
// Up to so many rows (52 x 44 patches) an image's state lies in shared memory.
constexpr int64_t kRowsInShared = 2304;

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
  extern __shared__ __align__(8) char state[];
  __shared__ Change changes[kThreads];
  __shared__ int num_changes;
  __shared__ double score_parts[kThreads / kWarpSize];
  __shared__ int64_t index_parts[kThreads / kWarpSize];
  DeviceCoverageBlock block = blocks.block[blockIdx.x];
  if (block.size <= kRowsInShared) {
    block.gain = reinterpret_cast<int64_t*>(state);
    block.cover = reinterpret_cast<int32_t*>(block.gain + block.size);
    block.is_picked = reinterpret_cast<bool*>(block.cover + block.size);
  }
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

// In place: a cosine becomes a similarity in fixed point.
__global__ void __launch_bounds__(kThreads) fix_similarities_kernel(float* cosine, int64_t count, bool is_affine) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count) return;
  const float value = isnan(cosine[i]) ? -1.0F : fminf(fmaxf(cosine[i], -1.0F), 1.0F);
  const float similarity = is_affine ? (value + 1.0F) * 0.5F : fmaxf(value, 0.0F);
  reinterpret_cast<int32_t*>(cosine)[i] = static_cast<int32_t>(rintf(similarity * kFixedOne));
}

}  // namespace

cudaError_t fix_similarities_cuda(float* cosine, int64_t count, CosineMap map, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  fix_similarities_kernel<<<grid, kThreads, 0, stream>>>(cosine, count, map == CosineMap::kAffine);
  return cudaGetLastError();
}

cudaError_t facility_location_greedy_cuda(const DeviceCoverageBlocks& blocks, int64_t count, double coverage_scale,
                                          cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i)
    if (blocks.block[i].size <= kRowsInShared) rows = std::max(rows, blocks.block[i].size);
  const size_t bytes = static_cast<size_t>(rows) * (sizeof(int64_t) + sizeof(int32_t) + sizeof(bool));
  greedy_kernel<<<static_cast<unsigned>(count), kThreads, bytes, stream>>>(blocks, coverage_scale / kFixedOne);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
