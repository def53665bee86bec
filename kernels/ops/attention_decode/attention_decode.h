// SPDX-License-Identifier: Apache-2.0
// Attention of one new token a sequence, with lengths that the device reads, on raw pointers. The CPU has no kernel of
// its own here: it runs attention's. Not the op itself (attention_decode.cpp) and no tensors: the .cu includes this.
#pragma once

#include "kernels/ops/attention/attention.h"

namespace espalier::kernels {

// query [b, h, d]; output [b, h, d] and lse [h, b] contiguous; key_begin and key_length [b], of which no length is
// above max_length. Positions are read only with window > 0.
struct AttentionDecodeProblem {
  AttentionRows query, key, value;
  void* output;
  float* lse;
  const int64_t* key_begin;
  const int64_t* key_length;
  const int64_t* query_position;
  const int64_t* key_position;
  int64_t num_sequences, max_length;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;  // 0: none
  float scale;     // > 0
  ElementType dtype;
};

#ifdef ESPALIER_HAS_CUDA
// All pointers lie on the device; heads up to kAttentionCudaMaxDim wide. partials: room for so many floats. Returns
// what the launches returned.
int64_t attention_decode_cuda_partial_floats(const AttentionDecodeProblem& problem);
cudaError_t attention_decode_cuda(const AttentionDecodeProblem& problem, float* partials, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
