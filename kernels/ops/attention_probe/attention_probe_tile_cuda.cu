// SPDX-License-Identifier: Apache-2.0
// attention_probe for many rows of 16-bit elements: scores of a tile of rows and columns as products on the matrix
// units, in float32, then probabilities, reduced where they are. Sums over rows go to partial results first, which a
// second kernel adds in one order: nothing depends on timing.
#include <mma.h>

#include <algorithm>

#include "kernels/ops/attention_probe/attention_probe.h"
#include "kernels/support/cuda/row_products.cuh"

namespace espalier::kernels {
namespace {

namespace wmma = nvcuda::wmma;

constexpr int kTile = 64;      // rows, and columns, of a tile
constexpr int kFragment = 16;  // rows, columns and depth of one product on the matrix units
constexpr int kFragments = kTile / kFragment;
constexpr int kWarps = kFragments, kThreads = kWarps * kWarpSize;  // a warp has 16 rows,
constexpr int kLaneColumns = kTile / kWarpSize;                    // a lane every 32nd column of them
constexpr int kScoreStride = kTile + 4;
constexpr int kMaxWidth = 256;
constexpr int64_t kRowTilesOfABlock = 8;  // where rows are reduced: the tile of keys serves all of them

// Elements from row to row of a tile of queries or keys: whole fragments, and 16 bytes more against bank conflicts.
__host__ __device__ int tile_stride(int64_t d) {
  return static_cast<int>((d + kFragment - 1) / kFragment) * kFragment + 8;
}

// How the work is cut. A block takes a tile of columns of one group, the rows of its row tiles, and `heads_of_a_block`
// heads; `slots`: blocks that share rows and columns, each with its own partial results.
struct TilePlan {
  ops::HeadReduction heads;
  bool reduce_rows;
  int64_t row_tiles_of_a_block, heads_of_a_block, slots;
  int64_t num_rows, num_columns;  // of all groups
};

TilePlan tile_plan(const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows) {
  // A mean over rows and heads is one sum, whose parts may lie in any block; a maximum over heads needs them together,
  // and so does a mean that is written row by row.
  const bool is_split = heads == ops::HeadReduction::kEach || (heads == ops::HeadReduction::kMean && reduce_rows);
  return {.heads = heads,
          .reduce_rows = reduce_rows,
          .row_tiles_of_a_block = reduce_rows ? kRowTilesOfABlock : 1,
          .heads_of_a_block = is_split ? 1 : shape.num_heads,
          .slots = is_split ? shape.num_heads : 1,
          .num_rows = shape.row_begin[shape.num_groups],
          .num_columns = shape.column_begin[shape.num_groups]};
}

__host__ __device__ int64_t blocks_of_rows(int64_t num_rows, int64_t row_tiles_of_a_block) {
  return (num_rows + row_tiles_of_a_block * kTile - 1) / (row_tiles_of_a_block * kTile);
}

// Rows index[0 .. count) of one head to shared memory, [kTile][stride]; zeros behind the last row and behind d.
template <typename T, bool kIsWide>
__device__ void load_tile(const void* data, int64_t row_stride, int64_t offset, const int64_t* index, int count, int d,
                          int stride, T* tile) {
  constexpr int kPack = kIsWide ? kPackSize<T> : 1;
  const int packs = stride / kPack;
  for (int i = threadIdx.x; i < kTile * packs; i += kThreads) {
    const int row = i / packs, column = i % packs * kPack;
    Pack<T, kPack> pack;
    for (int k = 0; k < kPack; ++k) pack.values[k] = from_float<T>(0.0F);
    if (row < count && column < d)
      pack = load_pack<kPack>(static_cast<const T*>(data) + index[row] * row_stride + offset + column);
    store_pack(tile + row * stride + column, pack);
  }
}

// scores = queries · keysᵀ for this warp's rows.
template <typename T>
__device__ void multiply(const T* queries, const T* keys, int stride, int d, float* scores) {
  wmma::fragment<wmma::accumulator, kFragment, kFragment, kFragment, float> sum[kFragments];
  for (auto& s : sum) wmma::fill_fragment(s, 0.0F);
  for (int k = 0; k < d; k += kFragment) {
    wmma::fragment<wmma::matrix_a, kFragment, kFragment, kFragment, T, wmma::row_major> a;
    wmma::load_matrix_sync(a, queries + k, stride);
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      wmma::fragment<wmma::matrix_b, kFragment, kFragment, kFragment, T, wmma::col_major> b;
      wmma::load_matrix_sync(b, keys + n * kFragment * stride + k, stride);
      wmma::mma_sync(sum[n], a, b, sum[n]);
    }
  }
#pragma unroll
  for (int n = 0; n < kFragments; ++n)
    wmma::store_matrix_sync(scores + n * kFragment, sum[n], kScoreStride, wmma::mem_row_major);
  __syncwarp();
}

// Grid: tiles of columns, blocks of rows times slots, groups.
template <typename T, bool kIsWide>
__global__ void __launch_bounds__(kThreads) tile_kernel(ProbeLayer layer, ProbeShape shape, ProbeGroupBounds groups,
                                                        TilePlan plan, float* partials, float* out) {
  extern __shared__ __align__(32) char shared[];  // as fragments are read
  __shared__ float warp_sums[kWarps][kTile];
  const int64_t group = blockIdx.z, slot = blockIdx.y % plan.slots, row_block = blockIdx.y / plan.slots;
  const auto& bound = groups.bound[group];
  const int64_t first_column = (group == 0 ? groups.first_column : groups.bound[group - 1].column_end) +
                               static_cast<int64_t>(blockIdx.x) * kTile;
  const int64_t first_row = bound.row_begin + row_block * plan.row_tiles_of_a_block * kTile;
  const int64_t last_row = min(bound.row_end, first_row + plan.row_tiles_of_a_block * kTile);
  if (first_column >= bound.column_end || first_row >= last_row) return;  // the same in the whole block
  const int num_columns = static_cast<int>(min(static_cast<int64_t>(kTile), bound.column_end - first_column));
  const int d = static_cast<int>(shape.d), stride = tile_stride(d);
  T* queries = reinterpret_cast<T*>(shared);
  T* keys = queries + kTile * stride;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float* scores = reinterpret_cast<float*>(keys + kTile * stride) + warp * kFragment * kScoreStride;

  int64_t column[kLaneColumns], position[kLaneColumns];
  for (int n = 0; n < kLaneColumns; ++n) {
    const int i = lane + n * kWarpSize;
    column[n] = i < num_columns ? shape.columns[first_column + i] : -1;
    position[n] = shape.window > 0 && i < num_columns ? shape.position[column[n]] : 0;
  }
  const int64_t repeat = shape.num_heads / shape.num_kv_heads, first_head = slot * plan.heads_of_a_block;
  int64_t loaded_kv_head = -1;
  float column_sum[kLaneColumns] = {};
  for (int64_t tile = first_row; tile < last_row; tile += kTile) {
    const int num_rows = static_cast<int>(min(static_cast<int64_t>(kTile), last_row - tile));
    float reduced[kFragment][kLaneColumns] = {};
    for (int64_t head = first_head; head < first_head + plan.heads_of_a_block; ++head) {
      const int64_t kv_head = head / repeat;
      __syncthreads();  // the tiles before may still be read
      load_tile<T, kIsWide>(layer.query, layer.query_stride, head * d, shape.rows + tile, num_rows, d, stride, queries);
      if (kv_head != loaded_kv_head)
        load_tile<T, kIsWide>(layer.key, layer.key_stride, kv_head * d, shape.columns + first_column, num_columns, d,
                              stride, keys);
      loaded_kv_head = kv_head;
      __syncthreads();
      multiply(queries + warp * kFragment * stride, keys, stride, d, scores);
#pragma unroll
      for (int r = 0; r < kFragment; ++r) {
        const int i = warp * kFragment + r;
        if (i >= num_rows) continue;  // the same in the whole warp
        const int64_t row = shape.rows[tile + i];
        const float lse = layer.lse[head * shape.num_queries + row];
        const int64_t own = own_key(shape, row), horizon = shape.window > 0 ? shape.position[own] - shape.window : 0;
        for (int n = 0; n < kLaneColumns; ++n) {
          const bool is_hidden = column[n] < 0 || (shape.is_causal && column[n] > own) ||
                                 (shape.window > 0 && horizon >= position[n]) || lse == -INFINITY;
          const float p = is_hidden ? 0.0F : expf(shape.scale * scores[r * kScoreStride + lane + n * kWarpSize] - lse);
          reduced[r][n] = plan.heads == ops::HeadReduction::kMax ? fmaxf(reduced[r][n], p) : reduced[r][n] + p;
        }
      }
      __syncwarp();  // the scores may still be read
    }
    const int64_t out_row = plan.heads == ops::HeadReduction::kEach ? slot * plan.num_rows : 0;
    const float share = plan.heads == ops::HeadReduction::kMean && !plan.reduce_rows
                            ? 1.0F / static_cast<float>(shape.num_heads)
                            : 1.0F;
#pragma unroll
    for (int r = 0; r < kFragment; ++r) {
      const int i = warp * kFragment + r;
      for (int n = 0; n < kLaneColumns; ++n) {
        column_sum[n] += reduced[r][n];
        if (!plan.reduce_rows && i < num_rows && column[n] >= 0)
          out[(out_row + tile + i) * plan.num_columns + first_column + lane + n * kWarpSize] = reduced[r][n] * share;
      }
    }
  }
  if (!plan.reduce_rows) return;
  for (int n = 0; n < kLaneColumns; ++n) warp_sums[warp][lane + n * kWarpSize] = column_sum[n];
  __syncthreads();
  for (int i = threadIdx.x; i < num_columns; i += kThreads) {
    float sum = 0.0F;
    for (int w = 0; w < kWarps; ++w) sum += warp_sums[w][i];
    partials[(row_block * plan.slots + slot) * plan.num_columns + first_column + i] = sum;
  }
}

// One thread per column, grid.y: the heads that are kept apart.
__global__ void __launch_bounds__(kThreads)
    sum_partials_kernel(ProbeGroupBounds groups, TilePlan plan, int64_t num_heads, const float* partials, float* out) {
  const int64_t c = groups.first_column + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  int64_t group = 0;
  while (group < groups.count && c >= groups.bound[group].column_end) ++group;
  if (group == groups.count) return;
  const int64_t rows = groups.bound[group].row_end - groups.bound[group].row_begin;
  const bool is_each = plan.heads == ops::HeadReduction::kEach;
  const int64_t first_slot = is_each ? blockIdx.y : 0, last_slot = is_each ? first_slot + 1 : plan.slots;
  float sum = 0.0F;
  for (int64_t block = 0; block < blocks_of_rows(rows, plan.row_tiles_of_a_block); ++block)
    for (int64_t slot = first_slot; slot < last_slot; ++slot)
      sum += partials[(block * plan.slots + slot) * plan.num_columns + c];
  const int64_t count = plan.heads == ops::HeadReduction::kMean ? rows * num_heads : rows;
  out[first_slot * plan.num_columns + c] = count > 0 ? sum / static_cast<float>(count) : 0.0F;
}

int64_t most_row_blocks(const ProbeShape& shape, const TilePlan& plan) {
  int64_t most = 0;
  for (int64_t group = 0; group < shape.num_groups; ++group)
    most =
        std::max(most, blocks_of_rows(shape.row_begin[group + 1] - shape.row_begin[group], plan.row_tiles_of_a_block));
  return most;
}

// Whether all rows of 16-byte packs begin at a multiple of 16 bytes.
template <typename T>
bool fits_wide(const ProbeLayer& layer, const ProbeShape& shape) {
  return pointers_fit_packs(layer.query, layer.key) &&
         extents_fit_packs<T>(shape.d, layer.query_stride, layer.key_stride);
}

template <typename T, bool kIsWide>
cudaError_t launch(const ProbeLayer& layer, const ProbeShape& shape, const ProbeGroupBounds& groups,
                   const TilePlan& plan, dim3 grid, float* partials, float* out, cudaStream_t stream) {
  const size_t bytes = 2 * kTile * tile_stride(shape.d) * sizeof(T) + kTile * kScoreStride * sizeof(float);
  const cudaError_t error = cudaFuncSetAttribute(tile_kernel<T, kIsWide>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                 static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  tile_kernel<T, kIsWide><<<grid, kThreads, bytes, stream>>>(layer, shape, groups, plan, partials, out);
  return cudaGetLastError();
}

}  // namespace

bool attention_probe_has_tiles(const ProbeShape& shape) {
  constexpr int64_t kFewRows = 16;  // of a group: a fragment of the matrix units would be half empty
  return shape.type != ElementType::kFloat32 && shape.d <= kMaxWidth && shape.num_groups > 0 &&
         shape.row_begin[shape.num_groups] >= kFewRows * shape.num_groups;
}

int64_t attention_probe_tiles_partial_floats(const ProbeShape& shape, ops::HeadReduction heads, bool reduce_rows) {
  if (!reduce_rows) return 0;
  const TilePlan plan = tile_plan(shape, heads, reduce_rows);
  return most_row_blocks(shape, plan) * plan.slots * plan.num_columns;
}

cudaError_t attention_probe_tiles_cuda(const ProbeLayer& layer, const ProbeShape& shape, ops::HeadReduction heads,
                                       bool reduce_rows, float* partials, float* out, cudaStream_t stream) {
  const TilePlan plan = tile_plan(shape, heads, reduce_rows);
  for (int64_t first = 0; first < shape.num_groups; first += ProbeGroupBounds::kMaxGroups) {
    const ProbeGroupBounds groups = probe_group_bounds(shape, first);
    const int64_t columns = groups.bound[groups.count - 1].column_end - groups.first_column;
    if (columns == 0) continue;
    int64_t most_columns = 0;
    for (int64_t i = 0; i < groups.count; ++i)
      most_columns = std::max(
          most_columns, groups.bound[i].column_end - (i == 0 ? groups.first_column : groups.bound[i - 1].column_end));
    const dim3 grid(static_cast<unsigned>((most_columns + kTile - 1) / kTile),
                    static_cast<unsigned>(most_row_blocks(shape, plan) * plan.slots),
                    static_cast<unsigned>(groups.count));
    const auto run = [&]<typename T>(T*) {
      return fits_wide<T>(layer, shape) ? launch<T, true>(layer, shape, groups, plan, grid, partials, out, stream)
                                        : launch<T, false>(layer, shape, groups, plan, grid, partials, out, stream);
    };
    cudaError_t error = shape.type == ElementType::kBFloat16 ? run(static_cast<__nv_bfloat16*>(nullptr))
                                                             : run(static_cast<__half*>(nullptr));
    if (error == cudaSuccess && reduce_rows) {
      const dim3 sums(static_cast<unsigned>((columns + kThreads - 1) / kThreads),
                      static_cast<unsigned>(heads == ops::HeadReduction::kEach ? shape.num_heads : 1));
      sum_partials_kernel<<<sums, kThreads, 0, stream>>>(groups, plan, shape.num_heads, partials, out);
      error = cudaGetLastError();
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace espalier::kernels
