// SPDX-License-Identifier: Apache-2.0
// One C++ function per op. Each is registered with the PyTorch dispatcher under the same name (`torch.ops.espalier.*`;
// schemas in kernels/schemas.cpp), so the tensors' device picks the kernel; a device without one gets torch's own
// error. All ops are pure: inputs are not changed, outputs are new. Inputs may be non-contiguous. Accumulation is
// float32 whatever the input dtype (f32, bf16, f16). Wrong shapes, dtypes or devices throw c10::Error beginning with
// the op's name. Thread-safe.
//
// Letters: b sequences (or blocks), n tokens, m image tokens, k kept, h query heads, g KV heads (h is a multiple of g;
// query head i reads KV head i / (h / g)), d width. "Packed": sequences lie behind each other in the first dimension;
// `*_begin` are int64 on the CPU, ascending, one more than sequences. Ties go to the lower index everywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

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
//   query [nq, h, d]; key, value [nk, g, d]. Sequence s: query rows query_begin[s] .. query_begin[s+1], keys
//   key_begin[s] .. key_begin[s] + key_length[s] (int64 [b] each, on the CPU; rows between sequences are not read).
//   A sequence may have fewer query rows than keys (those behind a cached prefix, a decode step), and several may read
//   the same keys. Rows of several streams against one shared run of keys are one sequence, not causal.
//   is_causal: aligned at the end, so the last query row of a sequence sees all of its keys.
//   window > 0: key j is seen by query i only if position(i) - window < position(j); needs query_position [nq],
//   key_position [nk] (int64). key_weight float32 [nk]: weight of each key inside the softmax, exp(s_ij)·w_j / sum (a
//   row's own key, by the causal alignment, counts with weight 1): the soft mask of learned policies. Takes the
//   composed form.
// -> output [nq, h, d] in query's dtype; log-sum-exp of the scaled scores, float32 [h, nq] (-inf where a row sees no
// key, output 0).
std::tuple<Tensor, Tensor> attention(const Tensor& query, const Tensor& key, const Tensor& value,
                                     const Tensor& query_begin, const Tensor& key_begin, const Tensor& key_length,
                                     double scale, bool is_causal, int64_t window = 0,
                                     const OptionalTensor& query_position = {}, const OptionalTensor& key_position = {},
                                     const OptionalTensor& key_weight = {});

// Decoding: one query row for each sequence, over caches whose lengths the host need not know. The same result as
// `attention` of single rows; but key_begin and key_length (int64 [b]) lie on query's device and are read there, so
// that launches once recorded (a CUDA graph) stay right while the sequences grow. No length is above max_length, which
// decides how much is launched; on the CPU the values are checked, on a GPU they are trusted. query [b, h, d]; key,
// value [nk, g, d]; window, query_position [b] and key_position [nk] as in `attention`. Not differentiable.
// -> output [b, h, d] and log-sum-exp float32 [h, b], as `attention` gives them.
std::tuple<Tensor, Tensor> attention_decode(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const Tensor& key_begin, const Tensor& key_length, int64_t max_length,
                                            double scale, int64_t window = 0, const OptionalTensor& query_position = {},
                                            const OptionalTensor& key_position = {});

// Joins attention of the same rows over two disjoint sets of keys into attention over both (FlashInfer's merge_state):
// output = (e^lse_a · output_a + e^lse_b · output_b) / (e^lse_a + e^lse_b), lse = log(e^lse_a + e^lse_b).
//   output_a, output_b [n, h, d] of one dtype; lse_a, lse_b float32 [h, n], as `attention` gives them.
// A part whose lse is -inf counts nothing, whatever its output holds; both -inf: output 0, lse -inf. Beside a part that
// counts nothing the other keeps its bits. Arithmetic in float32. Differentiable.
// -> output [n, h, d] in the parts' dtype, lse [h, n].
std::tuple<Tensor, Tensor> merge_states(const Tensor& output_a, const Tensor& lse_a, const Tensor& output_b,
                                        const Tensor& lse_b);

// ---- attention by-products: the probabilities of chosen rows and columns, recomputed as exp(scale·q·k - lse) ----

enum class HeadReduction : uint8_t { kMean, kMax, kEach };

// query [nq, h, d], key [nk, g, d], lse [h, nq] as `attention` gave it for these queries. Group i: rows row_begin[i] ..
// row_begin[i+1] of `rows` (int64 [r], which query) against columns column_begin[i] .. column_begin[i+1] of `columns`
// (int64 [c], which key); a group's rows and columns are of one sequence. Keys may be part of a larger buffer.
//   own_key int64 [nq]: the key of the query's own token. Without it query i's is key i, which nq = nk tokens have.
//   is_causal: a column behind the row's own key has probability 0. window > 0: so has one whose position is not above
//   that of the own key - window; position int64 [nk]. Neither: own_key is not asked for.
// Heads are reduced first, then (reduce_rows) the mean over the group's rows is taken.
// -> float32. reduce_rows: [c], or [h, c] for kEach. Not reduce_rows (one group only): [r, c], or [h, r, c] for kEach.
// A group without rows gives 0. Differentiable in query, key and lse.
Tensor attention_probe(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows,
                       const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double scale,
                       bool is_causal, HeadReduction heads, bool reduce_rows, int64_t window = 0,
                       const OptionalTensor& position = {}, const OptionalTensor& own_key = {});

// max(0, A_upper - A_lower) of two layers over the same tokens, for groups and own_key as in attention_probe (rows
// averaged, causal). relu_per_head: the difference is clipped in each head before the mean over heads and rows; else
// means first (CATP eq. 8). With `hidden` [nk, w] and `direction` [groups, w]: + cosine_weight · cos(hidden[c],
// direction[group]) (CATP eq. 9). -> float32 [c].
Tensor attention_growth(const Tensor& query_lower, const Tensor& key_lower, const Tensor& lse_lower,
                        const Tensor& query_upper, const Tensor& key_upper, const Tensor& lse_upper, const Tensor& rows,
                        const Tensor& row_begin, const Tensor& columns, const Tensor& column_begin, double scale,
                        bool relu_per_head, int64_t window = 0, const OptionalTensor& position = {},
                        const OptionalTensor& hidden = {}, const OptionalTensor& direction = {},
                        double cosine_weight = 0.0, const OptionalTensor& own_key = {});

// ---- scores and selections ----

// Cosine of rows x[index] (all rows without `index`; int64 [c]) with each direction: x [n, d], direction [v, d] ->
// float32 [v, c]. 0 where a norm is below 1e-12.
Tensor cosine_score(const Tensor& x, const Tensor& direction, const OptionalTensor& index = {});

// Cosine of every row of x [n, d] with every row of y [m, d]: float32 [n, m]. 0 where a norm is below 1e-12. A product
// of matrices with the norms folded in, for many rows on both sides; for few directions: cosine_score. Differentiable.
Tensor pairwise_cosine(const Tensor& x, const Tensor& y);

// How a cosine becomes the similarity in [0, 1] that coverage sums: (1 + c) / 2; max(c, 0); (c - min) / (max - min)
// over the block's matrix (0.5 where the range is below 1e-12).
enum class Similarity : uint8_t { kAffine, kClamp, kMinmax };

// CATP stage 1, eqs. 5-7, for each block of features [m, d] (block_begin int64 [b+1] on the CPU): greedily picks
// num_kept[i] rows (int64 [b], CPU) that maximise coverage_scale · sum_x max_{y picked} sim(x, y) + sum_{y picked}
// modular[y]. modular float32 [m], defined or 0. `forced` bool [m]: these rows are picked first, in index order. A
// candidate wins when its gain is >= the largest - 1e-9; lowest index first.
// -> int64 [sum num_kept]: row numbers (of the whole `features`), block by block, in the order they were picked.
Tensor facility_location_greedy(const Tensor& features, const Tensor& block_begin, const Tensor& num_kept,
                                Similarity similarity, double coverage_scale = 1.0, const OptionalTensor& modular = {},
                                const OptionalTensor& forced = {});

// How far apart two rows are: 1 - cosine (1 where a norm is below 1e-12); sum of |x - y|; root of the sum of (x - y)².
enum class Distance : uint8_t { kCosine, kL1, kL2 };

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
