// SPDX-License-Identifier: Apache-2.0
// Attention probabilities of chosen rows and columns on raw pointers: the description of a layer and of the groups, the
// plain reference (which tests call), the blocked CPU path and the CUDA launcher. Nothing here knows torch.
#pragma once

#include <cstdint>

#ifdef ESPALIER_HAS_CUDA
#include <cuda_runtime_api.h>
#endif

#include "espalier/op_choices.h"
#include "kernels/support/cpu_level.h"
#include "kernels/support/element_type.h"

namespace espalier::kernels {

// One attention layer over packed tokens. Heads lie behind each other inside a token; tokens lie a stride (in elements)
// apart.
struct ProbeLayer {
  const void* query;     // [nq, h, d]
  const void* key;       // [nk, g, d]
  const float* lse;      // [h, nq], log-sum-exp of the scaled scores; -inf where a row sees no key
  int64_t query_stride;  // elements from token to token
  int64_t key_stride;
};

// What both layers of attention_growth share. Group i: rows[row_begin[i] .. row_begin[i+1]] against
// columns[column_begin[i] .. [i+1]].
struct ProbeShape {
  ElementType type;
  int64_t num_queries;  // nq
  int64_t num_heads;    // h
  int64_t num_kv_heads;
  int64_t d;
  float scale;
  bool is_causal;           // column > the row's own key: probability 0
  int64_t window;           // > 0: position[own key] - window >= position[column] gives 0
  const int64_t* own_key;   // [nq], among the keys; null: a row's own key is its namesake
  const int64_t* position;  // [nk], read for window > 0 only
  const int64_t* rows;
  const int64_t* row_begin;
  const int64_t* columns;
  const int64_t* column_begin;
  int64_t num_groups;
};

// Probability of key `column` in head `head` of query `row`: exp(scale · q·k - lse), 0 where it is not seen.
float attention_probability_plain(const ProbeLayer& layer, const ProbeShape& shape, int64_t head, int64_t row,
                                  int64_t column);

// out: [c], or [h, c] for kEach; not reduce_rows: [r, c], or [h, r, c] for kEach.
void attention_probe_plain(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows,
                           float* out);

// The same in blocks of rows and columns, on at::get_num_threads() threads.
void attention_probe_blocked(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                             bool reduce_rows, CpuLevel level, float* out);

// The bounds of some groups in a row, by value: they travel as arguments of the launch, so that nothing is copied to
// the device.
struct ProbeGroupBounds {
  static constexpr int64_t kMaxGroups = 64;
  struct Bound {
    int64_t row_begin, row_end, column_end;
  };
  int64_t first_group, first_column, count;
  Bound bound[kMaxGroups];
};

// Groups first_group and what fits; the begins of `shape` are on the host.
ProbeGroupBounds probe_group_bounds(const ProbeShape& shape, int64_t first_group);

#ifdef ESPALIER_HAS_CUDA
// attention_probe_plain on the device: all of `shape` there but row_begin and column_begin. One warp per column: for
// few rows, and for every dtype.
cudaError_t attention_probe_cuda(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                                 bool reduce_rows, float* out, cudaStream_t stream);

// The same on the matrix units, for the shapes that has_tiles names: 16-bit elements and many rows.
bool attention_probe_has_tiles(const ProbeShape& shape);
int64_t attention_probe_tiles_partial_floats(const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows);
cudaError_t attention_probe_tiles_cuda(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                                       bool reduce_rows, float* partials, float* out, cudaStream_t stream);
#endif

}  // namespace espalier::kernels
