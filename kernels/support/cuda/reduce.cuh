// SPDX-License-Identifier: Apache-2.0
// Sums, maxima and scans over a warp and over a block of whole warps. Every thread of the warp or block must take part.
// Used by .cu only.
#pragma once

#include <cstdint>

namespace espalier::kernels {

inline constexpr int kWarpSize = 32;
inline constexpr int kMaxWarps = 32;  // of a block

__device__ inline float warp_sum(float v) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffU, v, offset);
  return v;
}

// The sum over the block, in every thread; always added in the same order.
__device__ inline float block_sum(float v) {
  __shared__ float parts[kMaxWarps];
  const int lane = threadIdx.x % kWarpSize;
  v = warp_sum(v);
  __syncthreads();  // parts may still be read by a call before this one
  if (lane == 0) parts[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  return warp_sum(lane < blockDim.x / kWarpSize ? parts[lane] : 0.0F);
}

struct Best {
  double value;
  int64_t index;
};

// The larger value; of equal ones the lower index.
__device__ inline Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

template <typename T>
__device__ T shuffle_xor(T v, int lanes) {
  return __shfl_xor_sync(0xffffffffU, v, lanes);
}
__device__ inline Best shuffle_xor(Best v, int lanes) {
  return {shuffle_xor(v.value, lanes), shuffle_xor(v.index, lanes)};
}

// The reduction of v over the warp, in every lane. combine(v, v) must be v.
template <typename V, typename Combine>
__device__ V warp_reduce(V v, Combine combine) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) v = combine(v, shuffle_xor(v, offset));
  return v;
}

// The same over the block, in every thread.
template <typename V, typename Combine>
__device__ V block_reduce(V v, Combine combine) {
  __shared__ V parts[kMaxWarps];
  const int lane = threadIdx.x % kWarpSize, warps = blockDim.x / kWarpSize;
  v = warp_reduce(v, combine);
  __syncthreads();  // parts may still be read by a call before this one
  if (lane == 0) parts[threadIdx.x / kWarpSize] = v;
  __syncthreads();
  return warp_reduce(parts[lane < warps ? lane : 0], combine);
}

struct Scan {
  uint32_t before;  // sum over the threads in front of this one
  uint32_t total;   // sum over the block
};

__device__ inline uint32_t warp_inclusive_scan(uint32_t v) {
  const unsigned lane = threadIdx.x % kWarpSize;
  for (unsigned offset = 1; offset < kWarpSize; offset *= 2) {
    const uint32_t other = __shfl_up_sync(0xffffffffU, v, offset);
    if (lane >= offset) v += other;
  }
  return v;
}

__device__ inline Scan block_scan(uint32_t v) {
  __shared__ uint32_t parts[kMaxWarps];
  const unsigned lane = threadIdx.x % kWarpSize;
  const unsigned warp = threadIdx.x / kWarpSize;
  const uint32_t inclusive = warp_inclusive_scan(v);
  __syncthreads();  // parts may still be read by a call before this one
  if (lane == kWarpSize - 1) parts[warp] = inclusive;
  __syncthreads();
  // Every warp scans the warps' sums for itself, which saves a third barrier.
  const uint32_t warps = warp_inclusive_scan(lane < blockDim.x / kWarpSize ? parts[lane] : 0);
  const uint32_t warps_before = __shfl_sync(0xffffffffU, warps, warp == 0 ? 0 : warp - 1);
  return {inclusive - v + (warp == 0 ? 0 : warps_before), __shfl_sync(0xffffffffU, warps, kWarpSize - 1)};
}

}  // namespace espalier::kernels
