// SPDX-License-Identifier: Apache-2.0
// The tensor side that attention's devices share: the argument checks and the composed ATen form (gradients,
// key_weight, float64).
#pragma once

#include <string_view>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"

namespace espalier::ops {

// The arguments as the dispatcher passes them.
using AttentionSignature = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                      const Tensor&, const Tensor&, double, bool, int64_t,
                                                      const OptionalTensor&, const OptionalTensor&,
                                                      const OptionalTensor&);

// Shapes, dtypes and options; not the values of query_begin, key_begin and key_length.
void check_attention_shapes(const AttentionCall& in);

// Also the values: every sequence lies inside query and key.
void check_attention(const AttentionCall& in);

// Attention with the scores in memory, out of differentiable ATen operators, one sequence after another. Runs in
// float64 for float64.
std::tuple<Tensor, Tensor> attention_composed(const AttentionCall& in);

// True when only the composed form can answer.
bool attention_needs_composed(const AttentionCall& in);

// New results and, over the inputs' memory, the problem that kernels take. Keeps alive the copies made of inputs that
// do not fit.
struct AttentionTensors {
  Tensor query, key, value, query_position, key_position, output, lse;
  kernels::AttentionProblem problem;

  explicit AttentionTensors(const AttentionCall& in);
};

// The sequences of checked arguments.
std::vector<kernels::AttentionSequence> attention_sequences(const AttentionCall& in);

// Whether the library's flash kernel serves these arguments on CUDA.
bool attention_takes_flash(const AttentionCall& in);

// Which kernel serves the arguments: amx_bf16, avx512_bf16, avx512_f32, avx2, plain, cuda_flash, cuda_tiled or
// composed.
std::string_view attention_kernel_name(const AttentionCall& in);

}  // namespace espalier::ops
