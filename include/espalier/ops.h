// SPDX-License-Identifier: Apache-2.0
// One C++ function per op. Each is registered with the PyTorch dispatcher under the same name (`torch.ops.espalier.*`;
// schemas in kernels/schemas.cpp), so the tensors' device picks the kernel; a device without one gets torch's own
// error. All ops are pure: inputs are not changed, outputs are new. Inputs may be non-contiguous. Accumulation is
// float32 whatever the input dtype (f32, bf16, f16). Wrong shapes, dtypes or devices throw c10::Error beginning with
// the op's name. Thread-safe. An op with many arguments takes one struct, whose members are the schema's arguments in
// their order.
//
// Letters: b sequences (or blocks), n tokens, m image tokens, k kept, h query heads, g KV heads (h is a multiple of g;
// query head i reads KV head i / (h / g)), d width. "Packed": sequences lie one after another in the first dimension;
// `*_begin` are int64 on the CPU, ascending, one more than sequences. Ties go to the lower index everywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "espalier/op_choices.h"

namespace espalier::ops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- decoder path: differentiable (Autograd runs the composed ATen form when a gradient is asked for) ----

// x · rsqrt(mean(x²) + eps) in float32, cast to x's dtype, then times weight. x [..., d], weight [d] -> [..., d].
Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps);

// Rotary embedding, rotate-half form: x·cos + [-x2, x1]·sin. query [n, h, d], key [n, g, d], cos and sin [n, d] in
// their dtype.
std::tuple<Tensor, Tensor> rope(const Tensor& query, const Tensor& key, const Tensor& cos, const Tensor& sin);

// A linear layer: x [..., in], weight [out, in], bias [out] or none -> [..., out]. One to eight rows on the CPU read
// the weight once at memory speed (decoding); everything else is the library's product of matrices, in float32 where
// the CPU has no instructions for the dtype.
Tensor linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias = {});

// The same with an int8 weight [out, in] and a float32 scale an output: x · (weight · scale)ᵀ. Few rows multiply the
// int8 weights themselves; for many rows the weight is widened to x's dtype, which rounds it once more. Not
// differentiable.
Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale);

// silu(gate) · up, element by element; same shape.
Tensor silu_mul(const Tensor& gate, const Tensor& up);

// Softmax attention of packed sequences, never holding an n x n matrix.
struct AttentionCall {
  Tensor query, key, value;  // [nq, h, d]; [nk, g, d] twice
  // Sequence s: query rows query_begin[s] .. query_begin[s+1], keys key_begin[s] .. key_begin[s] + key_length[s] (int64
  // [b+1], [b], [b], on the CPU; rows between sequences are not read). A sequence may have fewer query rows than keys
  // (those after a cached prefix, a decode step), and several may read the same keys. Rows of several streams against
  // one shared run of keys are one sequence, not causal.
  Tensor query_begin, key_begin, key_length;
  double scale = 1.0;
  bool is_causal = true;  // aligned at the end: the last query row of a sequence sees all of its keys
  // > 0: key j is seen by query i only if position(i) - window < position(j).
  int64_t window = 0;
  OptionalTensor query_position = {}, key_position = {};  // int64 [nq], [nk]: asked for by a window
  // float32 [nk]: weight of each key inside the softmax, exp(s_ij)·w_j / sum (a row's own key, by the causal alignment,
  // counts with weight 1): the soft mask of learned policies. Takes the composed form.
  OptionalTensor key_weight = {};
};
// -> output [nq, h, d] in query's dtype; log-sum-exp of the scaled scores, float32 [h, nq] (-inf where a row sees no
// key, output 0).
std::tuple<Tensor, Tensor> attention(const AttentionCall& call);

// Decoding: one query row for each sequence, over caches whose lengths the host need not know. The same result as
// `attention` of single rows; but key_begin and key_length lie on query's device and are read there, so that launches
// once recorded (a CUDA graph) stay right while the sequences grow. Not differentiable.
struct AttentionDecodeCall {
  Tensor query, key, value;      // [b, h, d]; [nk, g, d] twice
  Tensor key_begin, key_length;  // int64 [b], on query's device
  // No length is above it; it decides how much is launched. On the CPU that is checked, on a GPU it is trusted.
  int64_t max_length = 0;
  double scale = 1.0;
  int64_t window = 0;                                     // as attention's
  OptionalTensor query_position = {}, key_position = {};  // int64 [b], [nk]
};
// -> output [b, h, d] and log-sum-exp float32 [h, b], as `attention` gives them.
std::tuple<Tensor, Tensor> attention_decode(const AttentionDecodeCall& call);

// Joins attention of the same rows over two disjoint sets of keys into attention over both (FlashInfer's merge_state):
// output = (e^lse_a · output_a + e^lse_b · output_b) / (e^lse_a + e^lse_b), lse = log(e^lse_a + e^lse_b).
//   output_a, output_b [n, h, d] of one dtype; lse_a, lse_b float32 [h, n], as `attention` gives them.
// A part whose lse is -inf counts nothing, whatever its output holds; both -inf: output 0, lse -inf. Beside a part that
// counts nothing the other keeps its bits. Arithmetic in float32. Differentiable.
// -> output [n, h, d] in the parts' dtype, lse [h, n].
std::tuple<Tensor, Tensor> merge_states(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                        const Tensor& lse_b);

// ---- attention by-products: the probabilities of chosen rows and columns, recomputed as exp(scale·q·k - lse) ----

// One layer's attention, of these queries to these keys, which may be part of a larger buffer.
struct AttendedLayer {
  Tensor query, key, lse;  // [nq, h, d]; [nk, g, d]; [h, nq], as `attention` gave it
};

// Group i: rows row_begin[i] .. row_begin[i+1] of `rows` against columns column_begin[i] .. column_begin[i+1] of
// `columns`; a group's rows and columns are of one sequence.
struct AttentionProbeCall {
  AttendedLayer layer;
  Tensor rows, row_begin;        // int64 [r]: which query; [groups+1], on the CPU
  Tensor columns, column_begin;  // int64 [c]: which key; [groups+1], on the CPU
  double scale = 1.0;
  bool is_causal = true;  // a column after the row's own key has probability 0
  HeadReduction heads = HeadReduction::kMean;
  bool reduce_rows = true;       // the mean over a group's rows, taken after the reduction of heads
  int64_t window = 0;            // > 0: a column counts only if its position is above that of the own key - window
  OptionalTensor position = {};  // int64 [nk]: asked for by a window
  OptionalTensor own_key = {};   // int64 [nq]: the key of a query's own token, asked for by causality and windows.
                                 // Without it query i's is key i, which nq = nk tokens have
};
// -> float32. reduce_rows: [c], or [h, c] for kEach. Not reduce_rows (one group only): [r, c], or [h, r, c] for kEach.
// A group without rows gives 0. Differentiable in query, key and lse.
Tensor attention_probe(const AttentionProbeCall& call);

// max(0, A_upper - A_lower) of two layers over the same tokens; groups as in attention_probe (rows averaged, causal).
struct AttentionGrowthCall {
  AttendedLayer lower, upper;
  Tensor rows, row_begin, columns, column_begin;
  double scale = 1.0;
  // The difference is clipped in each head before the mean over heads and rows; else means first (CATP eq. 8).
  bool relu_per_head = false;
  int64_t window = 0;
  OptionalTensor position = {};
  // [nk, w] and [groups, w]: + cosine_weight · cos(hidden[c], direction[group]) (CATP eq. 9).
  OptionalTensor hidden = {}, direction = {};
  double cosine_weight = 0.0;
  OptionalTensor own_key = {};
};
// -> float32 [c].
Tensor attention_growth(const AttentionGrowthCall& call);

// ---- scores and selections ----

// Cosine of rows x[index] (all rows without `index`; int64 [c]) with each direction: x [n, d], direction [v, d] ->
// float32 [v, c]. 0 where a norm is below 1e-12.
Tensor cosine_score(const Tensor& x, const Tensor& direction, const OptionalTensor& index = {});

// Cosine of every row of x [n, d] with every row of y [m, d]: float32 [n, m]. 0 where a norm is below 1e-12. A product
// of matrices with the norms folded in, for many rows on both sides; for few directions: cosine_score. Differentiable.
Tensor pairwise_cosine(const Tensor& x, const Tensor& y);

// CATP stage 1, eqs. 5-7, for each block of features [m, d] (block_begin int64 [b+1] on the CPU): greedily picks
// num_kept[i] rows (int64 [b], CPU) that maximise coverage_scale · sum_x max_{y picked} sim(x, y) + sum_{y picked}
// modular[y]. modular float32 [m], defined or 0. `forced` bool [m]: these rows are picked first, in index order. A
// candidate wins when its gain is >= the largest - 1e-9; lowest index first.
// -> int64 [sum num_kept]: row numbers (of the whole `features`), block by block, in the order they were picked.
Tensor facility_location_greedy(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                Similarity similarity, double coverage_scale = 1.0, const OptionalTensor& modular = {},
                                const OptionalTensor& forced = {});

// Farthest-first greedy choice for each block of features [m, d] (block_begin and num_kept as above): first the row
// that is farthest from its nearest neighbour, then again and again the one farthest from all picked ones. `forced`
// bool [m]: these rows are picked first, in index order. Equal rows have distance 0 exactly; a distance that is not a
// number counts as 0.
// -> int64 [sum num_kept]: row numbers (of the whole `features`), block by block, in the order they were picked.
Tensor max_min_select(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept, Distance distance,
                      const OptionalTensor& forced = {});

// Greedy MAP of a determinantal point process for each block of features [m, d] (block_begin and num_kept as above):
// each pick raises the determinant of L_ij = r_i · cos(x_i, x_j) · r_j over the picked rows most; r = relevance float32
// [m], 0 where it is not finite. Rows of norm below 1e-12 add nothing. Once no row adds more than 1e-6 of the largest
// L_ii, the rest comes by falling relevance. `forced` bool [m]: these rows are picked first, in index order.
// -> int64 [sum num_kept]: row numbers (of the whole `features`), block by block, in the order they were picked.
Tensor greedy_dpp(const Tensor& features, const Tensor& relevance, const Tensor& block_begin, const Tensor& num_kept,
                  const OptionalTensor& forced = {});

// The num_kept[i] largest of each block of scores float32 [m], as ascending indices into `scores`: int64 [sum
// num_kept], block by block. NaN ranks below everything.
Tensor topk_sorted(const Tensor& scores, const Tensor& block_begin, const Tensor& num_kept);

// Rows of x [n, ...] at index int64 [k], in that order -> [k, ...]. Differentiable.
Tensor gather_rows(const Tensor& x, const Tensor& index);

// Weighted means of rows of x [n, d]: result i is sum_j weight[j]·x[index[j]] / sum_j weight[j], j in group_begin[i] ..
// group_begin[i+1]. index int64 [r]; group_begin int64 [k+1], ascending, on x's device (often decided there); weight
// float32 [r], all ones without it. A group without rows, or whose weights sum to 0, gives 0. Summed in the order of
// `index`: equal input, equal bits. -> [k, d] in x's dtype. Differentiable in x and weight.
Tensor merge_tokens(const Tensor& x, const Tensor& index, const Tensor& group_begin, const OptionalTensor& weight = {});

// Keeps rows of a layer's cache: key, value [n, g, d]; index int64 [k], or [g, k] for a choice per KV head -> [k, g, d]
// each.
std::tuple<Tensor, Tensor> compact_kv(const Tensor& key, const Tensor& value, const Tensor& index);

}  // namespace espalier::ops
