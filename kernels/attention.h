// SPDX-License-Identifier: Apache-2.0
// Softmax attention of packed sequences on raw pointers: the problem as plain structs, the plain loops that tests call,
// and which kernel serves a problem. Not the op itself (attention.cpp) and no tensors: CUDA and AVX units include this.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/cpu_level.h"

namespace espalier::kernels {

enum class AttentionDtype : uint8_t { kFloat32, kBFloat16, kFloat16 };

// One sequence: query rows query_begin .. +num_queries, keys key_begin .. +num_keys.
struct AttentionSequence {
  int64_t query_begin, num_queries, key_begin, num_keys;
};

// Rows [n, heads, head_dim]; the last dimension has stride 1, the others any (in elements).
struct AttentionRows {
  const void* data;
  int64_t row_stride, head_stride;
};

// What all sequences of one call share. output [nq, h, d] contiguous, lse [h, nq]. Positions are read only with window
// > 0.
struct AttentionProblem {
  AttentionRows query, key, value;
  void* output;
  float* lse;
  const int64_t* query_position;
  const int64_t* key_position;
  int64_t num_query_rows;
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t window;  // 0: none
  float scale;     // > 0
  bool is_causal;
  AttentionDtype dtype;
};

// Query head `head`, rows row_begin .. row_end of the sequence, in plain loops and float32.
void attention_plain(const AttentionProblem& problem, const AttentionSequence& sequence, int64_t head,
                     int64_t row_begin, int64_t row_end);

// All heads of `count` sequences on the CPU, with the instructions of `level`, on at::get_num_threads() threads.
void attention_cpu(const AttentionProblem& problem, const AttentionSequence* sequences, int64_t count, CpuLevel level);

}  // namespace espalier::kernels
