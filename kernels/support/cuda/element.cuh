// SPDX-License-Identifier: Apache-2.0
// Elements of tensors on the device: conversions to the float32 that kernels compute in, and 16-byte packs for wide
// loads. Used by .cu only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/support/element_type.h"

namespace espalier::kernels {

__device__ inline float to_float(float v) {
  return v;
}
__device__ inline float to_float(__nv_bfloat16 v) {
  return __bfloat162float(v);
}
__device__ inline float to_float(__half v) {
  return __half2float(v);
}

// To nearest even.
template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ inline __half from_float<__half>(float v) {
  return __float2half_rn(v);
}

// N neighbours, read and written in one instruction: the address must be a multiple of their size (see
// extents_fit_packs).
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};
template <typename T>
inline constexpr int kPackSize = 16 / sizeof(T);

template <int N, typename T>
__device__ Pack<T, N> load_pack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <int N, typename T>
__device__ void store_pack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// Whether addresses, and extents in elements, allow packs of 16 bytes.
template <typename T, typename... Extents>
bool extents_fit_packs(Extents... extents) {
  return ((extents % kPackSize<T> == 0) && ...);
}
template <typename... Pointers>
bool pointers_fit_packs(Pointers... pointers) {
  return ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
}

// Calls f with a null pointer of the element type: `[&]<typename T>(T*)`.
template <typename F>
auto visit_element(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kBFloat16:
      return f(static_cast<__nv_bfloat16*>(nullptr));
    case ElementType::kFloat16:
      return f(static_cast<__half*>(nullptr));
    default:
      return f(static_cast<float*>(nullptr));
  }
}

}  // namespace espalier::kernels
