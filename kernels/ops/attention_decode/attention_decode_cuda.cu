// SPDX-License-Identifier: Apache-2.0
// Decoding reads every key and value once and does next to nothing with them: a block takes the query heads of one KV
// head and a part of the keys, its warps take keys in turn, and a second kernel joins the parts. How many parts are
// launched follows from max_length; those behind a sequence's end return at once.
#include <math.h>

#include "kernels/ops/attention_decode/attention_decode.h"
#include "kernels/support/cuda/element.cuh"
#include "kernels/support/cuda/reduce.cuh"

namespace espalier::kernels {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;
constexpr int64_t kPartKeys = 128;  // fixed, so that a sequence's sums do not depend on what is beside it

__host__ __device__ int64_t num_parts(int64_t length) {
  return (length + kPartKeys - 1) / kPartKeys;
}
// Floats of one head's partial result: the sums of p·v, then peak and mass.
__host__ __device__ int64_t partial_row(int64_t dim) {
  return dim + 2;
}
__device__ float* partial_of(const AttentionDecodeProblem& p, float* partials, int64_t sequence, int64_t part,
                             int64_t head) {
  const int64_t row = (sequence * num_parts(p.max_length) + part) * p.num_heads + head;
  return partials + row * partial_row(p.head_dim);
}

// Element n of the N that a lane has of a row: neighbours, read in one go (kWide, 32 · N of them in all), or every
// 32nd.
template <int N, bool kWide>
__device__ int column_of(int n) {
  const int lane = threadIdx.x % kWarpSize;
  return kWide ? lane * N + n : lane + kWarpSize * n;
}
template <typename T, int N, bool kWide>
__device__ void load_row(const T* row, int dim, float (&to)[N]) {
  if constexpr (kWide) {
    const Pack<T, N> pack = load_pack<N>(row + column_of<N, kWide>(0));
#pragma unroll
    for (int n = 0; n < N; ++n) to[n] = to_float(pack.values[n]);
  } else {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int column = column_of<N, kWide>(n);
      to[n] = column < dim ? to_float(row[column]) : 0.0F;
    }
  }
}

// One head's softmax over the keys that a warp has seen.
template <int N>
struct Running {
  float sum[N] = {}, peak = -INFINITY, mass = 0;

  template <int U>
  __device__ void add(const float (&score)[U], const float (&value)[U][N]) {
    float new_peak = peak;
#pragma unroll
    for (int u = 0; u < U; ++u) new_peak = fmaxf(new_peak, score[u]);
    if (new_peak == -INFINITY) return;  // no key seen yet, and none of these
    const float correction = expf(peak - new_peak);
    peak = new_peak;
    mass *= correction;
#pragma unroll
    for (int n = 0; n < N; ++n) sum[n] *= correction;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const float weight = expf(score[u] - peak);
      mass += weight;
#pragma unroll
      for (int n = 0; n < N; ++n) sum[n] += weight * value[u][n];
    }
  }
};

// All loops over arrays are unrolled: the arrays must stay in registers. Grid: parts, KV heads times groups of R query
// heads, sequences. Every branch around a warp's sum is the same for all of its lanes.
template <typename T, int N, int R, bool kWide>
__global__ void __launch_bounds__(kThreads) decode_kernel(AttentionDecodeProblem p, float* partials) {
  constexpr int kKeys = R == 1 ? 4 : 2;  // of a warp at once
  __shared__ float sums[kWarps][N * kWarpSize], peaks[kWarps], masses[kWarps];
  const int64_t sequence = blockIdx.z, part = blockIdx.x, ratio = p.num_heads / p.num_kv_heads;
  const int64_t groups = (ratio + R - 1) / R, kv_head = blockIdx.y / groups;
  const int64_t first_head = kv_head * ratio + blockIdx.y % groups * R, num_rows = (kv_head + 1) * ratio - first_head;
  const int64_t end = min((part + 1) * kPartKeys, p.key_length[sequence]);
  if (part * kPartKeys >= end) return;
  const int warp = threadIdx.x / kWarpSize, dim = static_cast<int>(p.head_dim);
  float query[R][N];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int64_t head = first_head + min(static_cast<int64_t>(r), num_rows - 1);
    load_row<T, N, kWide>(
        static_cast<const T*>(p.query.data) + sequence * p.query.row_stride + head * p.query.head_stride, dim,
        query[r]);
  }
  const int64_t begin = p.key_begin[sequence];
  const T* keys = static_cast<const T*>(p.key.data) + begin * p.key.row_stride + kv_head * p.key.head_stride;
  const T* values = static_cast<const T*>(p.value.data) + begin * p.value.row_stride + kv_head * p.value.head_stride;
  const int64_t horizon = p.window > 0 ? p.query_position[sequence] - p.window : 0;
  Running<N> running[R];
  for (int64_t i = part * kPartKeys + warp * kKeys; i < end; i += kWarps * kKeys) {
    float key[kKeys][N], value[kKeys][N];
#pragma unroll
    for (int u = 0; u < kKeys; ++u) {
      const int64_t row = min(i + u, end - 1);  // behind the end: the last one again, with a score that hides it
      load_row<T, N, kWide>(keys + row * p.key.row_stride, dim, key[u]);
      load_row<T, N, kWide>(values + row * p.value.row_stride, dim, value[u]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float score[kKeys];
#pragma unroll
      for (int u = 0; u < kKeys; ++u) {
        float dot = 0;
#pragma unroll
        for (int n = 0; n < N; ++n) dot += query[r][n] * key[u][n];
        dot = warp_sum(dot);
        const bool visible = i + u < end && (p.window == 0 || p.key_position[begin + i + u] > horizon);
        score[u] = visible ? dot * p.scale : -INFINITY;
      }
      running[r].add(score, value);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r >= num_rows) break;  // the same in the whole block
    __syncthreads();           // the row before may still be read
    for (int n = 0; n < N; ++n) sums[warp][column_of<N, kWide>(n)] = running[r].sum[n];
    if (threadIdx.x % kWarpSize == 0) peaks[warp] = running[r].peak, masses[warp] = running[r].mass;
    __syncthreads();
    float peak = -INFINITY, mass = 0;
    for (int w = 0; w < kWarps; ++w) peak = fmaxf(peak, peaks[w]);
    const float base = peak == -INFINITY ? 0.0F : peak;
    for (int w = 0; w < kWarps; ++w) mass += masses[w] * expf(peaks[w] - base);
    float* partial = partial_of(p, partials, sequence, part, first_head + r);
    for (int column = threadIdx.x; column < dim; column += kThreads) {
      float sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += sums[w][column] * expf(peaks[w] - base);
      partial[column] = sum;
    }
    if (threadIdx.x == 0) partial[dim] = peak, partial[dim + 1] = mass;
  }
}

// A block a head and sequence.
template <typename T>
__global__ void __launch_bounds__(kThreads) join_kernel(AttentionDecodeProblem p, float* partials) {
  const int64_t head = blockIdx.x, sequence = blockIdx.y, dim = p.head_dim;
  const int64_t parts = num_parts(p.key_length[sequence]);
  float peak = -INFINITY, mass = 0;
  for (int64_t i = 0; i < parts; ++i) peak = fmaxf(peak, partial_of(p, partials, sequence, i, head)[dim]);
  const float base = peak == -INFINITY ? 0.0F : peak;
  for (int64_t i = 0; i < parts; ++i) {
    const float* partial = partial_of(p, partials, sequence, i, head);
    mass += partial[dim + 1] * expf(partial[dim] - base);
  }
  for (int64_t column = threadIdx.x; column < dim; column += kThreads) {
    float sum = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const float* partial = partial_of(p, partials, sequence, i, head);
      sum += partial[column] * expf(partial[dim] - base);
    }
    static_cast<T*>(p.output)[(sequence * p.num_heads + head) * dim + column] =
        from_float<T>(mass > 0 ? sum / mass : 0.0F);
  }
  if (threadIdx.x == 0) p.lse[head * p.num_sequences + sequence] = mass > 0 ? peak + logf(mass) : -INFINITY;
}

template <typename T, int N, int R, bool kWide>
cudaError_t launch_parts(const AttentionDecodeProblem& p, float* partials, cudaStream_t stream) {
  const int64_t groups = (p.num_heads / p.num_kv_heads + R - 1) / R;
  const dim3 grid(static_cast<unsigned>(num_parts(p.max_length)), static_cast<unsigned>(p.num_kv_heads * groups),
                  static_cast<unsigned>(p.num_sequences));
  decode_kernel<T, N, R, kWide><<<grid, kThreads, 0, stream>>>(p, partials);
  return cudaGetLastError();
}

// Query heads that a block takes at once: four, where the registers hold them; the next four read the keys again, which
// are still in the level 2 cache.
template <typename T, int N, bool kWide>
cudaError_t launch_rows(const AttentionDecodeProblem& p, float* partials, cudaStream_t stream) {
  if constexpr (N <= 8) {
    if (p.num_heads > p.num_kv_heads) return launch_parts<T, N, 4, kWide>(p, partials, stream);
  }
  return launch_parts<T, N, 1, kWide>(p, partials, stream);
}

// Whether every row begins where N neighbours can be read in one go.
template <typename T, int N>
bool fits_wide(const AttentionDecodeProblem& p) {
  const auto fits = [](const AttentionRows& rows) {
    return reinterpret_cast<uintptr_t>(rows.data) % (N * sizeof(T)) == 0 && rows.row_stride % N == 0 &&
           rows.head_stride % N == 0;
  };
  return p.head_dim == N * kWarpSize && fits(p.query) && fits(p.key) && fits(p.value);
}

template <typename T, int N>
cudaError_t launch_width(const AttentionDecodeProblem& p, float* partials, cudaStream_t stream) {
  if constexpr (N <= 8) {
    if (fits_wide<T, N>(p)) return launch_rows<T, N, true>(p, partials, stream);
  }
  return launch_rows<T, N, false>(p, partials, stream);
}

}  // namespace

int64_t attention_decode_cuda_partial_floats(const AttentionDecodeProblem& p) {
  return p.num_sequences * num_parts(p.max_length) * p.num_heads * partial_row(p.head_dim);
}

cudaError_t attention_decode_cuda(const AttentionDecodeProblem& p, float* partials, cudaStream_t stream) {
  if (p.num_sequences == 0) return cudaSuccess;
  return visit_element(p.dtype, [&]<typename T>(T*) {
    const int64_t dims = (p.head_dim + kWarpSize - 1) / kWarpSize;
    cudaError_t error = cudaSuccess;
    if (p.max_length > 0) {
      if (dims <= 2)
        error = launch_width<T, 2>(p, partials, stream);
      else if (dims <= 4)
        error = launch_width<T, 4>(p, partials, stream);
      else if (dims <= 8)
        error = launch_width<T, 8>(p, partials, stream);
      else
        error = launch_width<T, kAttentionCudaMaxDim / kWarpSize>(p, partials, stream);
    }
    if (error != cudaSuccess) return error;
    const dim3 grid(static_cast<unsigned>(p.num_heads), static_cast<unsigned>(p.num_sequences));
    join_kernel<T><<<grid, kThreads, 0, stream>>>(p, partials);
    return cudaGetLastError();
  });
}

}  // namespace espalier::kernels
