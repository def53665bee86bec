// SPDX-License-Identifier: Apache-2.0
// Attention over two disjoint sets of keys joined by log-sum-exp, below the dispatcher: the check that every backend
// makes, and the loops and launchers on raw pointers.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "kernels/support/element_type.h"

namespace at {
class Tensor;
}

namespace espalier::kernels {

// Throws unless both outputs are [n, h, d] and both lse [h, n] (float32; float64 beside float64), on one device.
void check_merge_states(const at::Tensor& output_a, const at::Tensor& lse_a, const at::Tensor& output_b,
                        const at::Tensor& lse_b);

// One part: rows [n, h, d] contiguous; lse [h, n], a head's row lse_stride elements behind the one before.
struct StatePart {
  const void* output;
  const float* lse;
  int64_t lse_stride;
};

// output [n, h, d] and lse [h, n], both contiguous.
struct MergeStatesProblem {
  StatePart a, b;
  void* output;
  float* lse;
  int64_t num_rows, num_heads, head_dim;
  ElementType type;
};

// Shares of the two parts in the result, and its lse. A share is 0 where the part counts nothing.
struct MergeWeights {
  float a, b, lse;
};
MergeWeights merge_weights(float lse_a, float lse_b);

// out[i] = weight.a · a[i] + weight.b · b[i] in float32, rounded once; a part of weight 0 is not read.
template <typename T>
void merge_row_plain(const T* a, const T* b, MergeWeights weight, int64_t d, T* out);

// The same for `count` rows of d elements that lie behind each other, with a weight for each.
using MergeRowsLoop = void(ElementType type, const void* a, const void* b, const MergeWeights* weights, int64_t count,
                           int64_t d, void* out);
namespace avx2 {
MergeRowsLoop merge_rows;
}
namespace avx512 {
MergeRowsLoop merge_rows;
}

#ifdef ESPALIER_HAS_CUDA
cudaError_t merge_states_cuda(const MergeStatesProblem& problem, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
