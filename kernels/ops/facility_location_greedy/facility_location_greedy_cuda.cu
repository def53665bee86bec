// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"
#include "kernels/support/cuda/cluster.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = kClusterThreads;

__device__ double larger(double a, double b) {
  return fmax(a, b);
}
__device__ int64_t smaller(int64_t a, int64_t b) {
  return a < b ? a : b;
}

struct Change {
  int64_t row;
  int32_t before, after;
};
// Of the kernel: the changes of a pick, and what reductions use.
constexpr size_t kStaticSharedBytes = sizeof(Change) * kThreads + 1024;

// What a block of the cluster knows of its image: of every row the cover, which each block counts for itself, and of
// the columns that its own threads own the gain. In shared memory where that is large enough.
struct State {
  int64_t* gain;    // [columns_of_block], at a column's place
  int32_t* cover;   // [size]
  bool* is_picked;  // [columns_of_block]
};

__host__ __device__ int64_t columns_of_block(int64_t size, int blocks) {
  const int64_t threads = int64_t{blocks} * kThreads;
  return (size + threads - 1) / threads * kThreads;
}
__host__ __device__ int64_t state_bytes(int64_t size, int blocks) {
  return columns_of_block(size, blocks) * static_cast<int64_t>(sizeof(int64_t) + sizeof(bool)) +
         size * static_cast<int64_t>(sizeof(int32_t));
}

// Calls f(column, its place in gain and is_picked) for each that this thread owns.
template <typename F>
__device__ void for_own_columns(const Cluster& cluster, int64_t size, const F& f) {
  int64_t place = threadIdx.x;
  for (int64_t j = cluster.thread(); j < size; j += cluster.num_threads(), place += kThreads) f(j, place);
}

// What the picked row changes. The list of changed rows comes in any order: sums of integers do not depend on it.
__device__ void take(const DeviceCoverageBlock& block, const Cluster& cluster, const State& state, int64_t pick,
                     Change* changes, int* num_changes) {
  for (int64_t base = 0; base < block.size; base += kThreads) {
    __syncthreads();  // the list may still be read
    if (threadIdx.x == 0) *num_changes = 0;
    __syncthreads();
    const int64_t x = base + threadIdx.x;
    if (x < block.size) {
      const int32_t before = state.cover[x], after = block.similarity[pick * block.size + x];
      if (after > before) {
        changes[atomicAdd(num_changes, 1)] = {x, before, after};
        state.cover[x] = after;
      }
    }
    __syncthreads();
    const int count = *num_changes;
    for_own_columns(cluster, block.size, [&](int64_t j, int64_t place) {
      int64_t lost = 0;
      for (int i = 0; i < count; ++i) {
        const Change change = changes[i];
        lost += min(max(block.similarity[change.row * block.size + j], change.before), change.after) - change.before;
      }
      state.gain[place] -= lost;
    });
  }
  for_own_columns(cluster, block.size, [&](int64_t j, int64_t place) {
    if (j == pick) state.is_picked[place] = true;
  });
}

__device__ double score(const DeviceCoverageBlock& block, int64_t gain, int64_t j, double step) {
  const double value = step * static_cast<double>(gain) + (block.modular == nullptr ? 0.0 : block.modular[j]);
  return isnan(value) ? -INFINITY : value;
}

// One cluster an image.
__global__ void __launch_bounds__(kThreads)
    greedy_kernel(DeviceCoverageBlocks blocks, double step, int cluster_blocks, bool is_state_shared) {
  extern __shared__ __align__(16) char shared[];
  __shared__ Change changes[kThreads];
  __shared__ int num_changes;
  Cluster cluster(cluster_blocks, reinterpret_cast<ClusterExchange*>(shared));
  const DeviceCoverageBlock block = blocks.block[cluster.image()];
  State state{block.gain, block.cover, block.is_picked};
  if (is_state_shared) {
    const int64_t columns = columns_of_block(block.size, cluster_blocks);
    state.gain = reinterpret_cast<int64_t*>(shared + sizeof(ClusterExchange));
    state.cover = reinterpret_cast<int32_t*>(state.gain + columns);
    state.is_picked = reinterpret_cast<bool*>(state.cover + block.size);
  }
  for (int64_t x = threadIdx.x; x < block.size; x += kThreads) state.cover[x] = 0;
  for_own_columns(cluster, block.size, [&](int64_t j, int64_t place) {
    int64_t gain = 0;
    for (int64_t x = 0; x < block.size; ++x) gain += block.similarity[x * block.size + j];
    state.gain[place] = gain;
    state.is_picked[place] = false;
  });
  int64_t taken = 0;
  for (int64_t j = 0; block.forced != nullptr && j < block.size && taken < block.num_kept; ++j) {
    if (!block.forced[j]) continue;  // the same in every thread
    take(block, cluster, state, j, changes, &num_changes);
    if (cluster.is_first_thread()) block.picks[taken] = block.begin + j;
    ++taken;
  }
  for (; taken < block.num_kept; ++taken) {
    double largest = -INFINITY;
    for_own_columns(cluster, block.size, [&](int64_t j, int64_t place) {
      if (!state.is_picked[place]) largest = fmax(largest, score(block, state.gain[place], j, step));
    });
    largest = cluster.reduce(largest, larger);
    int64_t pick = block.size;
    for_own_columns(cluster, block.size, [&](int64_t j, int64_t place) {
      if (pick == block.size && !state.is_picked[place] &&
          score(block, state.gain[place], j, step) >= largest - kGainTie)
        pick = j;
    });
    pick = cluster.reduce(pick, smaller);
    take(block, cluster, state, pick, changes, &num_changes);
    if (cluster.is_first_thread()) block.picks[taken] = block.begin + pick;
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

cudaError_t fix_similarities_cuda(float* cosine, int64_t count, ops::Similarity map, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const auto grid = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  fix_similarities_kernel<<<grid, kThreads, 0, stream>>>(cosine, count, map == ops::Similarity::kAffine);
  return cudaGetLastError();
}

cudaError_t facility_location_greedy_cuda(const DeviceCoverageBlocks& blocks, int64_t count, double coverage_scale,
                                          cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  const int64_t rows = most_rows(blocks, count);
  int width = 1;
  cudaError_t error = cluster_blocks(greedy_kernel, rows, &width);
  if (error != cudaSuccess) return error;
  int device = 0, limit = 0;
  if (error = cudaGetDevice(&device); error != cudaSuccess) return error;
  error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  // The largest image needs the most: columns of a block grow by whole blocks.
  size_t bytes = sizeof(ClusterExchange) + static_cast<size_t>(state_bytes(rows, width));
  const bool is_state_shared = bytes + kStaticSharedBytes <= static_cast<size_t>(limit);
  if (!is_state_shared) {
    width = 1;  // blocks have no cover of their own in global memory
    bytes = sizeof(ClusterExchange);
  }
  error = cudaFuncSetAttribute(greedy_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  return launch_clusters(greedy_kernel, count, width, bytes, stream, blocks, coverage_scale / kFixedOne, width,
                         is_state_shared);
}

}  // namespace espalier::kernels
