// SPDX-License-Identifier: Apache-2.0
// Tiled online-softmax attention for what the library's flash kernel does not take: float32, windows by position, rows
// that see no key, odd widths, and decoding, where it is cut along the keys.
#include <math.h>

#include "kernels/ops/attention/attention.h"
#include "kernels/support/cuda/element.cuh"

namespace espalier::kernels {
namespace {

constexpr int kWarps = 8, kWarpRows = 4, kThreads = 32 * kWarps, kKeys = 32;
static_assert(kWarps * kWarpRows == kAttentionCudaRows);

// Floats of one row of a partial result: the sums of p·v, then peak and mass.
__host__ __device__ int64_t partial_row(int64_t dim) {
  return dim + 2;
}

__device__ float warp_max(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffU, x, offset));
  return x;
}
__device__ float warp_sum(float x) {
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffU, x, offset);
  return x;
}

// Where stacked row r of a KV head belongs: see attention.h.
struct RowPlace {
  int64_t query_row, head, end;

  __device__ RowPlace(const AttentionProblem& p, const AttentionSequence& s, int64_t kv_head, int64_t row) {
    const int64_t ratio = p.num_heads / p.num_kv_heads, query = row / ratio;
    query_row = s.query_begin + query;
    head = kv_head * ratio + row % ratio;
    end = p.is_causal ? max(static_cast<int64_t>(0), query + 1 + s.num_keys - s.num_queries) : s.num_keys;
  }
};

template <typename T>
__device__ void write_row(const AttentionProblem& p, const RowPlace& place, int64_t column, float value) {
  static_cast<T*>(p.output)[(place.query_row * p.num_heads + place.head) * p.head_dim + column] = from_float<T>(value);
}

__device__ void write_lse(const AttentionProblem& p, const RowPlace& place, float peak, float mass) {
  p.lse[place.head * p.num_query_rows + place.query_row] = mass > 0 ? peak + logf(mass) : -INFINITY;
}

// Keys key .. key + kKeys of `rows` to shared memory as float32, [kKeys][stride]; zeros behind key_end.
template <typename T>
__device__ void load_tile(const AttentionRows& rows, int64_t first_row, int64_t kv_head, int64_t count, int dim,
                          int stride, float* tile) {
  const T* source = static_cast<const T*>(rows.data) + first_row * rows.row_stride + kv_head * rows.head_stride;
  for (int i = threadIdx.x; i < kKeys * dim; i += kThreads) {
    const int row = i / dim, column = i % dim;
    tile[row * stride + column] = row < count ? to_float(source[row * rows.row_stride + column]) : 0.0F;
  }
}

// One warp has kWarpRows rows; in Q·K a lane is a key of the tile, in P·V it is every 32nd dimension, kDims of them.
template <typename T, int kDims>
__global__ void __launch_bounds__(kThreads)
    attention_kernel(AttentionProblem p, const AttentionCudaBlock* blocks, float* partials) {
  extern __shared__ float shared[];
  const AttentionCudaBlock block = blocks[blockIdx.x];
  const AttentionSequence& seq = block.sequence;
  const int64_t kv_head = blockIdx.y, ratio = p.num_heads / p.num_kv_heads;
  const int dim = static_cast<int>(p.head_dim), stride = dim + 1;  // odd for the usual widths: lanes on different banks
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float* query = shared;                           // [kAttentionCudaRows][dim]
  float* tile = query + kAttentionCudaRows * dim;  // [kKeys][stride]: keys, then values
  const int64_t num_rows = min(kAttentionCudaRows, seq.num_queries * ratio - block.row_begin);
  for (int i = threadIdx.x; i < kAttentionCudaRows * dim; i += kThreads) {
    const int row = i / dim;
    float value = 0;
    if (row < num_rows) {
      const RowPlace place(p, seq, kv_head, block.row_begin + row);
      value = to_float(static_cast<const T*>(
          p.query.data)[place.query_row * p.query.row_stride + place.head * p.query.head_stride + i % dim]);
    }
    query[i] = value;
  }
  float sum[kWarpRows][kDims] = {}, peak[kWarpRows], mass[kWarpRows] = {};
  int64_t end[kWarpRows], horizon[kWarpRows];
  for (int r = 0; r < kWarpRows; ++r) {
    const int64_t row = warp * kWarpRows + r;
    const RowPlace place(p, seq, kv_head, block.row_begin + min(row, num_rows - 1));
    peak[r] = -INFINITY;
    end[r] = row < num_rows ? place.end : 0;
    horizon[r] = p.window > 0 ? p.query_position[place.query_row] - p.window : 0;
  }
  const int64_t last = min(block.key_end, RowPlace(p, seq, kv_head, block.row_begin + num_rows - 1).end);
  for (int64_t key = block.key_begin; key < last; key += kKeys) {
    const int64_t count = last - key;
    __syncthreads();
    load_tile<T>(p.key, seq.key_begin + key, kv_head, count, dim, stride, tile);
    __syncthreads();
    float score[kWarpRows] = {};
    for (int c = 0; c < dim; ++c) {
      const float k = tile[lane * stride + c];
      for (int r = 0; r < kWarpRows; ++r) score[r] += query[(warp * kWarpRows + r) * dim + c] * k;
    }
    const bool in_range = lane < count;
    const int64_t position = p.window > 0 && in_range ? p.key_position[seq.key_begin + key + lane] : 0;
    for (int r = 0; r < kWarpRows; ++r) {
      const bool visible = in_range && key + lane < end[r] && (p.window == 0 || position > horizon[r]);
      score[r] = visible ? score[r] * p.scale : -INFINITY;
      const float new_peak = fmaxf(peak[r], warp_max(score[r]));
      const float base = new_peak == -INFINITY ? 0.0F : new_peak;
      const float correction = expf(peak[r] - base);
      score[r] = expf(score[r] - base);
      mass[r] = mass[r] * correction + warp_sum(score[r]);
      peak[r] = new_peak;
      for (int n = 0; n < kDims; ++n) sum[r][n] *= correction;
    }
    __syncthreads();
    load_tile<T>(p.value, seq.key_begin + key, kv_head, count, dim, stride, tile);
    __syncthreads();
    for (int j = 0; j < kKeys; ++j) {
      float weight[kWarpRows];
      for (int r = 0; r < kWarpRows; ++r) weight[r] = __shfl_sync(0xffffffffU, score[r], j);
      for (int n = 0; n < kDims; ++n) {
        const int column = lane + 32 * n;
        const float v = column < dim ? tile[j * stride + column] : 0.0F;
        for (int r = 0; r < kWarpRows; ++r) sum[r][n] += weight[r] * v;
      }
    }
  }
  for (int r = 0; r < kWarpRows; ++r) {
    const int64_t row = warp * kWarpRows + r;
    if (row >= num_rows) continue;
    const RowPlace place(p, seq, kv_head, block.row_begin + row);
    const float inverse = mass[r] > 0 ? 1.0F / mass[r] : 0.0F;
    float* partial =
        block.partial < 0
            ? nullptr
            : partials + ((block.partial * p.num_kv_heads + kv_head) * kAttentionCudaRows + row) * partial_row(dim);
    for (int n = 0; n < kDims; ++n) {
      const int column = lane + 32 * n;
      if (column >= dim) continue;
      if (partial != nullptr)
        partial[column] = sum[r][n];
      else
        write_row<T>(p, place, column, sum[r][n] * inverse);
    }
    if (lane != 0) continue;
    if (partial != nullptr)
      partial[dim] = peak[r], partial[dim + 1] = mass[r];
    else
      write_lse(p, place, peak[r], mass[r]);
  }
}

// One warp per row: joins the partial results of one sequence and KV head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    join_kernel(AttentionProblem p, const AttentionCudaJoin* joins, const float* partials) {
  const AttentionCudaJoin join = joins[blockIdx.x];
  const int64_t kv_head = blockIdx.y, num_rows = join.sequence.num_queries * (p.num_heads / p.num_kv_heads);
  const int64_t dim = p.head_dim;
  const int lane = threadIdx.x % 32;
  for (int64_t row = threadIdx.x / 32; row < num_rows; row += kWarps) {
    const auto part = [&](int64_t i) {
      return partials + (((join.partial + i) * p.num_kv_heads + kv_head) * kAttentionCudaRows + row) * partial_row(dim);
    };
    float peak = -INFINITY, mass = 0;
    for (int64_t i = 0; i < join.num_partials; ++i) peak = fmaxf(peak, part(i)[dim]);
    const float base = peak == -INFINITY ? 0.0F : peak;
    for (int64_t i = 0; i < join.num_partials; ++i) mass += part(i)[dim + 1] * expf(part(i)[dim] - base);
    const RowPlace place(p, join.sequence, kv_head, row);
    for (int64_t column = lane; column < dim; column += 32) {
      float sum = 0;
      for (int64_t i = 0; i < join.num_partials; ++i) sum += part(i)[column] * expf(part(i)[dim] - base);
      write_row<T>(p, place, column, mass > 0 ? sum / mass : 0.0F);
    }
    if (lane == 0) write_lse(p, place, peak, mass);
  }
}

template <typename T, int kDims>
cudaError_t launch_attention(const AttentionProblem& p, const AttentionCudaBlock* blocks, int64_t num_blocks,
                             float* partials, cudaStream_t stream) {
  const size_t bytes = (kAttentionCudaRows * p.head_dim + kKeys * (p.head_dim + 1)) * sizeof(float);
  const cudaError_t error = cudaFuncSetAttribute(attention_kernel<T, kDims>,
                                                 cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(num_blocks), static_cast<unsigned>(p.num_kv_heads));
  attention_kernel<T, kDims><<<grid, kThreads, bytes, stream>>>(p, blocks, partials);
  return cudaGetLastError();
}

}  // namespace

int64_t attention_cuda_partial_floats(const AttentionProblem& problem, int64_t num_partials) {
  return num_partials * problem.num_kv_heads * kAttentionCudaRows * partial_row(problem.head_dim);
}

cudaError_t attention_cuda(const AttentionProblem& p, const AttentionCudaBlock* blocks, int64_t num_blocks,
                           const AttentionCudaJoin* joins, int64_t num_joins, float* partials, cudaStream_t stream) {
  return visit_element(p.dtype, [&]<typename T>(T*) {
    cudaError_t error = cudaSuccess;
    if (num_blocks > 0) {
      const int64_t dims = (p.head_dim + 31) / 32;
      if (dims <= 2)
        error = launch_attention<T, 2>(p, blocks, num_blocks, partials, stream);
      else if (dims <= 4)
        error = launch_attention<T, 4>(p, blocks, num_blocks, partials, stream);
      else if (dims <= 8)
        error = launch_attention<T, 8>(p, blocks, num_blocks, partials, stream);
      else
        error = launch_attention<T, kAttentionCudaMaxDim / 32>(p, blocks, num_blocks, partials, stream);
    }
    if (error == cudaSuccess && num_joins > 0) {
      const dim3 grid(static_cast<unsigned>(num_joins), static_cast<unsigned>(p.num_kv_heads));
      join_kernel<T><<<grid, kThreads, 0, stream>>>(p, joins, partials);
      error = cudaGetLastError();
    }
    return error;
  });
}

}  // namespace espalier::kernels
