// SPDX-License-Identifier: Apache-2.0
// The thread blocks that choose rows of one image together: a thread-block cluster, where the code was compiled for
// devices that have them (compute capability 9.0 and later) and an image has more rows than a block has threads, else a
// block alone. Used by .cu only.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>

#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {

inline constexpr int kClusterThreads = 1024;  // of each block
inline constexpr int kMaxClusterBlocks = 8;   // every device with clusters takes so many

// What the blocks of a cluster tell each other; each has one, at the start of its dynamic shared memory. Two sets in
// turn: a block that is fast to the next reduction must not write over what a slow one reads.
struct ClusterExchange {
  static constexpr int kValueBytes = 16;
  alignas(kValueBytes) char values[2][kMaxClusterBlocks * kValueBytes];
};

// The running block's view of its cluster, the same in all threads of the block.
class Cluster {
 public:
  // blocks: what launch_clusters was given. Every thread of the cluster must come here.
  __device__ Cluster(int blocks, ClusterExchange* exchange) : blocks_(blocks), exchange_(exchange) {
    sync();  // another block's shared memory may be written to once it runs
  }

  __device__ int64_t image() const { return blockIdx.x / blocks_; }
  // Thread t of the cluster owns the elements t, t + num_threads(), ...
  __device__ int64_t thread() const { return rank() * kClusterThreads + threadIdx.x; }
  __device__ int64_t num_threads() const { return blocks_ * kClusterThreads; }
  __device__ bool is_first_thread() const { return thread() == 0; }

  // A barrier; behind it every thread sees what all threads have written, to global memory too.
  __device__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      cooperative_groups::this_cluster().sync();
      return;
    }
#endif
    __syncthreads();
  }

  // The reduction of v over all threads of the cluster, in each of them. combine(v, v) must be v. Every thread must
  // take part. With one block it is no barrier for what was written before.
  template <typename V, typename Combine>
  __device__ V reduce(V v, Combine combine) {
    v = block_reduce(v, combine);
#if __CUDA_ARCH__ >= 900
    if (blocks_ > 1) {
      static_assert(sizeof(V) <= ClusterExchange::kValueBytes);
      V* values = reinterpret_cast<V*>(exchange_->values[turn_]);
      turn_ ^= 1;
      const int to = static_cast<int>(threadIdx.x);
      if (to < blocks_) *cooperative_groups::this_cluster().map_shared_rank(values + rank(), to) = v;
      sync();
      const int lane = threadIdx.x % kWarpSize;
      v = warp_reduce(values[lane < blocks_ ? lane : 0], combine);
    }
#endif
    return v;
  }

 private:
  __device__ int rank() const {
    return blockIdx.x % blocks_;
  }

  int blocks_, turn_ = 0;
  ClusterExchange* exchange_;
};

// Images: a struct with an array `block` of what the kernel must know of each.
template <typename Images>
int64_t most_rows(const Images& images, int64_t count) {
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) rows = std::max(rows, images.block[i].size);
  return rows;
}

// How many blocks choose for an image of so many rows.
template <typename Kernel>
cudaError_t cluster_blocks(Kernel* kernel, int64_t rows, int* blocks) {
  *blocks = 1;
  if (rows <= kClusterThreads) return cudaSuccess;
  cudaFuncAttributes compiled{};
  if (const cudaError_t error = cudaFuncGetAttributes(&compiled, kernel); error != cudaSuccess) return error;
  constexpr int kHasClusters = 90;
  if (compiled.ptxVersion < kHasClusters) return cudaSuccess;
  *blocks = static_cast<int>(std::min<int64_t>((rows + kClusterThreads - 1) / kClusterThreads, kMaxClusterBlocks));
  return cudaSuccess;
}

// A cluster of `blocks` blocks for each image; shared_bytes: of each block, ClusterExchange among them.
template <typename... Parameters, typename... Arguments>
cudaError_t launch_clusters(void (*kernel)(Parameters...), int64_t images, int blocks, size_t shared_bytes,
                            cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(images * blocks));
  config.blockDim = dim3(kClusterThreads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

// The same for a kernel that keeps nothing else in shared memory; it is given the images and the blocks of a cluster.
template <typename Images>
cudaError_t launch_for_images(void (*kernel)(Images, int), const Images& images, int64_t count, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  int blocks = 1;
  const cudaError_t error = cluster_blocks(kernel, most_rows(images, count), &blocks);
  if (error != cudaSuccess) return error;
  return launch_clusters(kernel, count, blocks, sizeof(ClusterExchange), stream, images, blocks);
}

}  // namespace espalier::kernels
