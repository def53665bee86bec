// SPDX-License-Identifier: Apache-2.0
// Softmax attention of packed sequences on raw pointers: the problem as plain structs, the plain loops that tests call,
// and which kernel serves a problem. Not the op itself (attention.cpp) and no tensors: CUDA and AVX units include this.
#pragma once

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include <cstdint>
#include <string_view>

#include "kernels/support/cpu_level.h"
#include "kernels/support/element_type.h"

namespace espalier::kernels {

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
  ElementType dtype;
};

// Query head `head`, rows row_begin .. row_end of the sequence, in plain loops and float32.
void attention_plain(const AttentionProblem& problem, const AttentionSequence& sequence, int64_t head,
                     int64_t row_begin, int64_t row_end);

// ---- the blocked form, one table of functions for each instruction set and dtype ----
//
// It works on stacked rows: the query heads of one KV head side by side, so that one pass over the keys serves them
// all. Stacked row r is query row r / ratio of the sequence, head kv_head · ratio + r % ratio, with ratio = num_heads /
// num_kv_heads. Keys are packed in tiles for the matrix kernel, ahead of time for long prompts or on the way for few
// rows. Every row adds up its keys in an order that only its own sequence decides.

// Smallest and largest position of a tile's keys; read only with a window.
struct AttentionTilePositions {
  int64_t smallest, largest;
};

// Stacked rows row_begin .. row_end against keys key_begin .. key_end of the sequence; key_begin is a multiple of
// keys_per_block.
struct AttentionRange {
  int64_t kv_head, row_begin, row_end, key_begin, key_end;
};

struct AttentionKernels {
  std::string_view name;
  int64_t keys_per_tile, keys_per_block, rows_per_group;  // steps of the loops; fewer rows than a group save nothing
  // KV heads whose rows are read side by side: a tile of so many heads, and the next one being fetched, stay in the
  // core's cache.
  int64_t (*heads_per_pass)(const AttentionProblem&);
  // Bytes of one KV head's packed keys, and of its packed values, for whole tiles.
  int64_t (*packed_bytes)(const AttentionProblem&, int64_t num_tiles);
  // Bytes that `attend` needs for itself, and floats of the unfinished result of so many rows.
  int64_t (*scratch_bytes)(const AttentionProblem&, int64_t num_rows);
  int64_t (*partial_floats)(const AttentionProblem&, int64_t num_rows);
  // Packs one tile of a KV head into the head's buffers.
  void (*pack)(const AttentionProblem&, const AttentionSequence&, int64_t kv_head, int64_t tile, void* packed_key,
               void* packed_value);
  // An unfinished result of so many rows that has seen no key yet.
  void (*start)(const AttentionProblem&, int64_t num_rows, float* partial);
  // Adds a range to the unfinished result of its rows. packed_key and packed_value: the head's whole buffers, or null
  // to pack on the way.
  void (*attend)(const AttentionProblem&, const AttentionSequence&, const AttentionRange&,
                 const AttentionTilePositions*, const void* packed_key, const void* packed_value, void* scratch,
                 float* partial);
  // Joins the partial results of the same rows over successive key ranges, using them up, and writes output and lse.
  void (*finish)(const AttentionProblem&, const AttentionSequence&, const AttentionRange&, float* partials,
                 int64_t num_partials);
};

// Null where the unit has none for the dtype. Call them only where cpu_level() allows.
const AttentionKernels* attention_avx2(ElementType dtype);
const AttentionKernels* attention_avx512(ElementType dtype);
const AttentionKernels* attention_amx(ElementType dtype);

// All heads of `count` sequences on the CPU, with the instructions of `level`, on at::get_num_threads() threads.
void attention_cpu(const AttentionProblem& problem, const AttentionSequence* sequences, int64_t count, CpuLevel level);

// Stacked rows of a CUDA thread block; its widest head.
constexpr int64_t kAttentionCudaRows = 32, kAttentionCudaMaxDim = 512;

// Which kernel serves the dtype at a level: amx_bf16, avx512_bf16, avx512_f32, avx2 or plain.
std::string_view attention_cpu_name(ElementType dtype, CpuLevel level);

#ifdef ESPALIER_HAS_CUDA
// ---- CUDA ----

// Work of one thread block: stacked rows from row_begin on (up to kAttentionCudaRows) against keys key_begin ..
// key_end, for each KV head. partial: which partial result to write, or -1 to write output and lse.
struct AttentionCudaBlock {
  AttentionSequence sequence;
  int64_t row_begin, key_begin, key_end, partial;
};
// Joins num_partials partial results, from `partial` on, of a sequence that has up to kAttentionCudaRows stacked rows.
struct AttentionCudaJoin {
  AttentionSequence sequence;
  int64_t partial, num_partials;
};

// Floats of the partial results of all KV heads.
int64_t attention_cuda_partial_floats(const AttentionProblem& problem, int64_t num_partials);

// `blocks` and `joins` lie on the device, as do all pointers of the problem. Returns what the launches returned.
cudaError_t attention_cuda(const AttentionProblem& problem, const AttentionCudaBlock* blocks, int64_t num_blocks,
                           const AttentionCudaJoin* joins, int64_t num_joins, float* partials, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
