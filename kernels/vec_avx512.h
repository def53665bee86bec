// SPDX-License-Identifier: Apache-2.0
// Sixteen floats from and to memory of any element type. Only *_avx512.cpp may include this: the anonymous namespace
// keeps the linker from giving its AVX-512 code to a unit that runs on older CPUs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/element_type.h"

namespace espalier::kernels {
namespace {

// Bit patterns in memory; torch's own types would bring torch's inline functions.
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

inline __m512 load16(const float* p) {
  return _mm512_loadu_ps(p);
}
inline __m512 load16(const float* p, __mmask16 mask) {
  return _mm512_maskz_loadu_ps(mask, p);
}
inline void store16(float* p, __m512 v) {
  _mm512_storeu_ps(p, v);
}
inline void store16(float* p, __m512 v, __mmask16 mask) {
  _mm512_mask_storeu_ps(p, mask, v);
}

inline __m512 widen(const BFloat16Bits*, __m256i bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline __m512 widen(const Float16Bits*, __m256i bits) {
  return _mm512_cvtph_ps(bits);
}

// To nearest even; results below 2^-126 become 0 in bfloat16.
inline __m256i narrow(const BFloat16Bits*, __m512 v) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
}
inline __m256i narrow(const Float16Bits*, __m512 v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}

template <typename Half>
__m512 load16(const Half* p) {
  return widen(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <typename Half>
__m512 load16(const Half* p, __mmask16 mask) {
  return widen(p, _mm256_maskz_loadu_epi16(mask, p));
}
template <typename Half>
void store16(Half* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(p, v));
}
template <typename Half>
void store16(Half* p, __m512 v, __mmask16 mask) {
  _mm256_mask_storeu_epi16(p, mask, narrow(p, v));
}

// v as it is after a store and a load.
inline __m512 rounded(const float*, __m512 v) {
  return v;
}
template <typename Half>
__m512 rounded(const Half* p, __m512 v) {
  return widen(p, narrow(p, v));
}

inline __mmask16 tail_mask(int64_t count) {
  return static_cast<__mmask16>((1U << count) - 1U);
}

// f(i) for whole vectors of [0, n), then f(i, mask) for the rest: the mask goes to load16 and store16.
template <typename F>
void for_each_16(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i);
  if (i < n) f(i, tail_mask(n - i));
}

// f with a null pointer of the element type.
template <typename F>
void visit_bits(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kFloat32:
      return f(static_cast<float*>(nullptr));
    case ElementType::kBFloat16:
      return f(static_cast<BFloat16Bits*>(nullptr));
    case ElementType::kFloat16:
      return f(static_cast<Float16Bits*>(nullptr));
  }
}

}  // namespace
}  // namespace espalier::kernels
