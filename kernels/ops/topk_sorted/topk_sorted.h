// SPDX-License-Identifier: Apache-2.0
// Selecting the largest scores below the dispatcher: the check that every backend makes, and the functions on raw
// pointers.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless scores is float32 [m], block_begin int64 [b + 1] and num_kept int64 [b] on the CPU, blocks ascending
// within 0..m and 0 <= num_kept[i] <= size of block i. -> sum of num_kept.
int64_t check_topk_sorted(const at::Tensor& scores, const at::Tensor& block_begin, const at::Tensor& num_kept);

// Writes the num_kept largest of scores[begin, end) as ascending indices into scores. Equal scores (-0 equals 0): lower
// index first; NaN ranks below everything. O(end - begin).
void topk_sorted_plain(const float* scores, int64_t begin, int64_t end, int64_t num_kept, int64_t* out);

#ifdef ESPALIER_HAS_CUDA
// A block: scores[begin, begin + size), of which num_kept are written from out[out_begin] on.
struct TopkBlock {
  int64_t begin, size, num_kept, out_begin;
};
// As many as fit into the arguments of one launch (4 KiB).
struct TopkBlocks {
  static constexpr int64_t kMaxBlocks = 120;
  TopkBlock block[kMaxBlocks];
};
cudaError_t topk_sorted_cuda(const float* scores, int64_t* out, const TopkBlocks& blocks, int64_t num_blocks,
                             cudaStream_t stream);
#endif

}  // namespace espalier::kernels
