// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope/rope.h"
#include "kernels/support/cuda/element.cuh"

namespace espalier::kernels {
namespace {

constexpr int kThreads = 256;

template <typename T>
struct RopeTensor {
  const T* x;
  T* out;
  RopeShape shape;
};

// N neighbours of a row's low half and the N they turn with.
template <typename T, int N>
__device__ void rotate_pack(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
  const Pack<T, N> low = load_pack<N>(x);
  const Pack<T, N> high = load_pack<N>(x + half);
  const Pack<T, N> cos_low = load_pack<N>(cos);
  const Pack<T, N> cos_high = load_pack<N>(cos + half);
  const Pack<T, N> sin_low = load_pack<N>(sin);
  const Pack<T, N> sin_high = load_pack<N>(sin + half);
  Pack<T, N> out_low;
  Pack<T, N> out_high;
  for (int j = 0; j < N; ++j) {
    const float a = to_float(low.values[j]);
    const float b = to_float(high.values[j]);
    out_low.values[j] = from_float<T>(a * to_float(cos_low.values[j]) - b * to_float(sin_low.values[j]));
    out_high.values[j] = from_float<T>(b * to_float(cos_high.values[j]) + a * to_float(sin_high.values[j]));
  }
  store_pack(out, out_low);
  store_pack(out + half, out_high);
}

// A block a token; its threads share the packs of all query heads, then of all key heads. Memory-bound: each element is
// read and written once, cos and sin once a token. Rows, halves and strides must be aligned to packs.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    rope_kernel(RopeTensor<T> query, RopeTensor<T> key, const T* __restrict__ cos, const T* __restrict__ sin) {
  const int64_t t = blockIdx.x;
  const int64_t d = query.shape.d;
  const auto packs = static_cast<unsigned>(d / 2 / N);  // of a row's half; 32 bits, since divisions by 64 are slow
  const unsigned query_packs = static_cast<unsigned>(query.shape.heads) * packs;
  const unsigned all_packs = query_packs + static_cast<unsigned>(key.shape.heads) * packs;
  for (unsigned p = threadIdx.x; p < all_packs; p += kThreads) {
    const RopeTensor<T>& tensor = p < query_packs ? query : key;
    const unsigned within = p < query_packs ? p : p - query_packs;
    const int64_t h = within / packs;
    const int64_t i = static_cast<int64_t>(within % packs) * N;
    rotate_pack<T, N>(tensor.x + t * tensor.shape.token_stride + h * tensor.shape.head_stride + i, cos + t * d + i,
                      sin + t * d + i, tensor.out + (t * tensor.shape.heads + h) * d + i, d / 2);
  }
}

template <typename T>
void launch(const RopeTensor<T>& query, const RopeTensor<T>& key, const T* cos, const T* sin, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(query.shape.tokens);
  if (pointers_fit_packs(query.x, query.out, key.x, key.out, cos, sin) &&
      extents_fit_packs<T>(query.shape.d / 2, query.shape.token_stride, query.shape.head_stride, key.shape.token_stride,
                           key.shape.head_stride))
    rope_kernel<T, kPackSize<T>><<<blocks, kThreads, 0, stream>>>(query, key, cos, sin);
  else
    rope_kernel<T, 1><<<blocks, kThreads, 0, stream>>>(query, key, cos, sin);
}

}  // namespace

cudaError_t rope_cuda(ElementType type, const void* query, const RopeShape& query_shape, void* query_out,
                      const void* key, const RopeShape& key_shape, void* key_out, const void* cos, const void* sin,
                      cudaStream_t stream) {
  visit_element(type, [&]<typename T>(T*) {
    launch<T>({static_cast<const T*>(query), static_cast<T*>(query_out), query_shape},
              {static_cast<const T*>(key), static_cast<T*>(key_out), key_shape}, static_cast<const T*>(cos),
              static_cast<const T*>(sin), stream);
  });
  return cudaGetLastError();
}

}  // namespace espalier::kernels
