// SPDX-License-Identifier: Apache-2.0
// Sixteen floats, from and to memory of any element type, with the instructions that the including unit is compiled
// for: one AVX-512 register, or two of AVX2. Only *_vector.cpp may include this, which are compiled once for each (see
// CMakeLists.txt): the anonymous namespace keeps the linker from giving one unit's code to another that runs on older
// CPUs. Sums and differences are written with operators; a · b + c by name, so that it is rounded once everywhere.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/support/element_type.h"

namespace espalier::kernels {
namespace {

// Bit patterns in memory; torch's own types would bring torch's inline functions.
struct BFloat16Bits {
  uint16_t bits;
};
struct Float16Bits {
  uint16_t bits;
};

#ifdef __AVX512F__

using Floats = __m512;
using Halves = __m256i;  // sixteen elements of 16 bits
using Tail = __mmask16;  // the first elements alone

inline Floats all(float x) {
  return _mm512_set1_ps(x);
}
inline Floats mul_add(Floats a, Floats b, Floats c) {
  return _mm512_fmadd_ps(a, b, c);
}
inline Floats mul_sub(Floats a, Floats b, Floats c) {
  return _mm512_fmsub_ps(a, b, c);
}
inline Floats sub_mul(Floats c, Floats a, Floats b) {  // c - a · b
  return _mm512_fnmadd_ps(a, b, c);
}
// Of two that do not compare, b.
inline Floats smaller(Floats a, Floats b) {
  return _mm512_min_ps(a, b);
}
inline Floats larger(Floats a, Floats b) {
  return _mm512_max_ps(a, b);
}
inline Floats root(Floats a) {
  return _mm512_sqrt_ps(a);
}
inline Floats magnitude(Floats a) {
  return _mm512_abs_ps(a);
}
inline Floats nearest_integer(Floats a) {
  return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a · 2^n for integers n within -252 .. 252.
inline Floats scaled_by_power(Floats a, Floats n) {
  return _mm512_scalef_ps(a, n);
}
inline float sum(Floats a) {
  return _mm512_reduce_add_ps(a);
}

inline Tail tail(int64_t count) {
  return static_cast<Tail>((1U << count) - 1U);
}
inline Floats load16(const float* p) {
  return _mm512_loadu_ps(p);
}
inline Floats load16(const float* p, Tail there) {
  return _mm512_maskz_loadu_ps(there, p);
}
inline void store16(float* p, Floats v) {
  _mm512_storeu_ps(p, v);
}
inline void store16(float* p, Floats v, Tail there) {
  _mm512_mask_storeu_ps(p, there, v);
}

inline Halves load_halves(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Halves load_halves(const void* p, Tail there) {
  return _mm256_maskz_loadu_epi16(there, p);
}
inline void store_halves(void* p, Halves v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
inline void store_halves(void* p, Halves v, Tail there) {
  _mm256_mask_storeu_epi16(p, there, v);
}
inline Floats widen(const BFloat16Bits*, Halves bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Floats widen(const Float16Bits*, Halves bits) {
  return _mm512_cvtph_ps(bits);
}
// To nearest even; results below 2^-126 become 0 in bfloat16.
inline Halves narrow(const BFloat16Bits*, Floats v) {
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(v));
}
inline Halves narrow(const Float16Bits*, Floats v) {
  return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
}
inline Floats widen16(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline Floats widen16(const int8_t* p, Tail there) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(there, p)));
}

#else

struct Floats {
  __m256 low, high;

  friend Floats operator+(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
  friend Floats operator-(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
  friend Floats operator*(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
  friend Floats operator/(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
};
using Halves = __m256i;
struct Tail {
  int64_t count;
};

inline Floats all(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Floats mul_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats mul_sub(Floats a, Floats b, Floats c) {
  return {_mm256_fmsub_ps(a.low, b.low, c.low), _mm256_fmsub_ps(a.high, b.high, c.high)};
}
inline Floats sub_mul(Floats c, Floats a, Floats b) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
inline Floats smaller(Floats a, Floats b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Floats larger(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats root(Floats a) {
  return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)};
}
inline Floats magnitude(Floats a) {
  const __m256 sign = _mm256_set1_ps(-0.0F);
  return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline __m256 nearest_integer(__m256 a) {
  return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Floats nearest_integer(Floats a) {
  return {nearest_integer(a.low), nearest_integer(a.high)};
}
// By two powers, each within float's exponents.
inline __m256 scaled_by_power(__m256 a, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return a * power(half) * power(_mm256_sub_epi32(whole, half));
}
inline Floats scaled_by_power(Floats a, Floats n) {
  return {scaled_by_power(a.low, n.low), scaled_by_power(a.high, n.high)};
}
inline float sum(Floats a) {
  const __m256 eight = a.low + a.high;
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline Tail tail(int64_t count) {
  return {count};
}
inline Floats load16(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline Floats load16(const float* p, Tail there) {
  alignas(32) float whole[16] = {};
  for (int64_t i = 0; i < there.count; ++i) whole[i] = p[i];
  return load16(whole);
}
inline void store16(float* p, Floats v) {
  _mm256_storeu_ps(p, v.low);
  _mm256_storeu_ps(p + 8, v.high);
}
inline void store16(float* p, Floats v, Tail there) {
  alignas(32) float whole[16];
  store16(whole, v);
  for (int64_t i = 0; i < there.count; ++i) p[i] = whole[i];
}

inline Halves load_halves(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline Halves load_halves(const void* p, Tail there) {
  alignas(32) uint16_t whole[16] = {};
  for (int64_t i = 0; i < there.count; ++i) whole[i] = static_cast<const uint16_t*>(p)[i];
  return load_halves(whole);
}
inline void store_halves(void* p, Halves v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), v);
}
inline void store_halves(void* p, Halves v, Tail there) {
  alignas(32) uint16_t whole[16];
  store_halves(whole, v);
  for (int64_t i = 0; i < there.count; ++i) static_cast<uint16_t*>(p)[i] = whole[i];
}
inline Floats widen(const BFloat16Bits*, Halves bits) {
  const auto wide = [](__m128i eight) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
  };
  return {wide(_mm256_castsi256_si128(bits)), wide(_mm256_extracti128_si256(bits, 1))};
}
inline Floats widen(const Float16Bits*, Halves bits) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), _mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1))};
}
// To nearest even: the part that goes, and the last bit that stays, decide the carry. A NaN keeps its sign and is
// quiet.
inline __m256i upper_half(__m256 v) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
}
inline Halves narrow(const BFloat16Bits*, Floats v) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(upper_half(v.low), upper_half(v.high)), 0xd8);
}
inline Halves narrow(const Float16Bits*, Floats v) {
  return _mm256_set_m128i(_mm256_cvtps_ph(v.high, _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(v.low, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats widen16(const int8_t* p) {
  const auto wide = [](const int8_t* eight) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight))));
  };
  return {wide(p), wide(p + 8)};
}
inline Floats widen16(const int8_t* p, Tail there) {
  int8_t whole[16] = {};
  for (int64_t i = 0; i < there.count; ++i) whole[i] = p[i];
  return widen16(whole);
}

#endif

template <typename Half, typename... There>
Floats load16(const Half* p, There... there) {
  return widen(p, load_halves(p, there...));
}
template <typename Half, typename... There>
void store16(Half* p, Floats v, There... there) {
  store_halves(p, narrow(p, v), there...);
}

// v as it is after a store and a load.
inline Floats rounded(const float*, Floats v) {
  return v;
}
template <typename Half>
Floats rounded(const Half* p, Floats v) {
  return widen(p, narrow(p, v));
}

// One element, rounded.
inline void store_one(float* p, float value) {
  *p = value;
}
template <typename Half>
void store_one(Half* p, float value) {
  store16(p, all(value), tail(1));
}

// e^x = 2^n · e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by its Taylor series to r^7 (error below 2^-27): about
// one unit in the last place. 0 and infinity where float ends; NaN stays NaN.
inline Floats exponential(Floats x) {
  x = larger(all(-126.0F), smaller(all(100.0F), x));
  const Floats n = nearest_integer(x * all(1.44269504F));
  // ln 2 in two parts, the first short enough that n · part is exact.
  Floats r = sub_mul(x, n, all(0.693359375F));
  r = sub_mul(r, n, all(-2.12194440e-4F));
  Floats series = all(1.0F / 5040);
  constexpr float kTerms[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};
  for (const float term : kTerms) series = mul_add(series, r, all(term));
  return scaled_by_power(series, n);
}

// f(i) for whole vectors of [0, n), then f(i, tail) for the rest: the tail goes to load16 and store16.
template <typename F>
void for_each_16(int64_t n, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) f(i);
  if (i < n) f(i, tail(n - i));
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
