// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/topk_sorted/topk_sorted.h"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 1024;
constexpr int kDigits = 256;

// An integer that ranks as the score does: NaN 0, then -inf .. inf. Adding 0 turns -0 into 0.
__device__ uint32_t rank_key(float score) {
  if (isnan(score)) return 0;
  const uint32_t bits = __float_as_uint(score + 0.0F);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

struct Threshold {
  uint32_t key;   // the num_kept-th largest
  uint32_t ties;  // how many scores equal to it are kept
};

// Counts the digit at `shift` of the keys that agree with `prefix` above it. Scores are much alike in their high bits:
// one atomic a digit and warp, instead of 32 on one counter.
__device__ void count_digits(const float* scores, int64_t size, uint32_t prefix, int shift, uint32_t* counts) {
  const uint32_t above = shift == 24 ? 0 : 0xffffffffU << (shift + 8);
  for (int64_t first = 0; first < size; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const uint32_t key = i < size ? rank_key(scores[i]) : 0;
    const bool counts_here = i < size && (key & above) == prefix;
    const uint32_t digit = counts_here ? (key >> shift) % kDigits : kDigits;
    const uint32_t peers = __match_any_sync(0xffffffffU, digit);
    if (counts_here && (peers & ((1U << (threadIdx.x % kWarpSize)) - 1U)) == 0)
      atomicAdd(&counts[digit], __popc(peers));
  }
}

// Radix selection: fixes the threshold's four digits from the highest on, one pass over the scores each.
__device__ Threshold find_threshold(const float* scores, int64_t size, uint32_t num_kept) {
  __shared__ uint32_t counts[kDigits];
  __shared__ Threshold found;
  if (threadIdx.x == 0) found = {0, num_kept};
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < kDigits) counts[threadIdx.x] = 0;
    __syncthreads();
    const Threshold so_far = found;
    count_digits(scores, size, so_far.key, shift, counts);
    __syncthreads();
    const uint32_t digit = kDigits - 1 - threadIdx.x;  // thread 0 has the largest; those beyond the last digit count 0
    const uint32_t count = threadIdx.x < kDigits ? counts[digit] : 0;
    const uint32_t larger = block_scan(count).before;
    if (larger < so_far.ties && so_far.ties <= larger + count)
      found = {so_far.key | digit << shift, so_far.ties - larger};
    __syncthreads();
  }
  return found;
}

// A block of threads a block of scores. Five passes over its scores (from cache): four find the threshold, the fifth
// writes the indices of what stays, in order, which leaves them sorted. Nothing depends on the order in which threads
// run.
__global__ void __launch_bounds__(kThreads)
    topk_sorted_kernel(const float* __restrict__ all_scores, int64_t* __restrict__ out,
                       const __grid_constant__ TopkBlocks blocks) {
  const TopkBlock block = blocks.block[blockIdx.x];
  if (block.num_kept == 0) return;
  const float* scores = all_scores + block.begin;
  const Threshold threshold = find_threshold(scores, block.size, static_cast<uint32_t>(block.num_kept));
  uint32_t larger = 0;  // kept so far for being above the threshold
  uint32_t ties = 0;    // equal to it so far, kept or not
  for (int64_t first = 0; first < block.size; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const uint32_t key = i < block.size ? rank_key(scores[i]) : 0;
    const bool is_larger = i < block.size && key > threshold.key;
    const bool is_tie = i < block.size && key == threshold.key;
    // Both counts in one scan: each is at most kThreads.
    const Scan scan = block_scan((is_larger ? 1U << 16 : 0U) | (is_tie ? 1U : 0U));
    const uint32_t larger_before = larger + (scan.before >> 16);
    const uint32_t ties_before = ties + (scan.before & 0xffffU);
    if (is_larger || (is_tie && ties_before < threshold.ties))
      out[block.out_begin + larger_before + min(ties_before, threshold.ties)] = block.begin + i;
    larger += scan.total >> 16;
    ties += scan.total & 0xffffU;
  }
}

}  // namespace

cudaError_t topk_sorted_cuda(const float* scores, int64_t* out, const TopkBlocks& blocks, int64_t num_blocks,
                             cudaStream_t stream) {
  topk_sorted_kernel<<<static_cast<unsigned>(num_blocks), kThreads, 0, stream>>>(scores, out, blocks);
  return cudaGetLastError();
}

}  // namespace espalier::kernels
