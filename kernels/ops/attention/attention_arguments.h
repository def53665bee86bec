// SPDX-License-Identifier: Apache-2.0
// The tensor side that attention's devices share: the argument checks and the composed ATen form (gradients,
// key_weight, float64).
#pragma once

#include <string_view>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"

namespace espalier::ops {

// The op's tensor arguments under their names, so that checks, devices and the composed form read the same ones.
struct AttentionInputs {
  const Tensor &query, &key, &value, &query_begin, &key_begin, &key_length;
  double scale;
  bool is_causal;
  int64_t window;
  OptionalTensor query_position, key_position, key_weight;
};

// Shapes, dtypes and options; not the values of query_begin, key_begin and key_length.
void check_attention_shapes(const AttentionInputs& in);

// Also the values: every sequence lies inside query and key.
void check_attention(const AttentionInputs& in);

// Attention with the scores in memory, out of differentiable ATen operators, one sequence after another. Runs in
// float64 for float64.
std::tuple<Tensor, Tensor> attention_composed(const AttentionInputs& in);

// True when only the composed form can answer.
bool attention_needs_composed(const AttentionInputs& in);

// New results and, over the inputs' memory, the problem that kernels take. Keeps alive the copies made of inputs that
// do not fit.
struct AttentionTensors {
  Tensor query, key, value, query_position, key_position, output, lse;
  kernels::AttentionProblem problem;

  explicit AttentionTensors(const AttentionInputs& in);
};

// The sequences of checked arguments.
std::vector<kernels::AttentionSequence> attention_sequences(const AttentionInputs& in);

// Whether the library's flash kernel serves these arguments on CUDA.
bool attention_takes_flash(const AttentionInputs& in);

// Which kernel serves the arguments: amx_bf16, avx512_bf16, avx512_f32, avx2, plain, cuda_flash, cuda_tiled or
// composed.
std::string_view attention_kernel_name(const AttentionInputs& in);

}  // namespace espalier::ops
