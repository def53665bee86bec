// SPDX-License-Identifier: Apache-2.0
// AVX-512 and the number formats it computes in, as attention_block.h wants them: bf16 dot products for bf16, fused
// multiply-adds for float32 and (widened on packing) float16. Included by units compiled with AVX-512 only; all of it
// is in an anonymous namespace.
#pragma once

#include <immintrin.h>

// GCC 12 takes the undefined operand inside its own AVX-512 intrinsics for a variable of ours (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "kernels/ops/attention/attention_block.h"
#include "kernels/support/transpose_avx512.h"

namespace espalier::kernels {
namespace {

struct Avx512 {
  using Vector = __m512;
  static constexpr int64_t kLanes = 16;

  static Vector zero() { return _mm512_setzero_ps(); }
  static Vector set(float x) { return _mm512_set1_ps(x); }
  static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm512_max_ps(a, b); }
  static float reduce_max(Vector x) { return _mm512_reduce_max_ps(x); }
  static float reduce_add(Vector x) { return _mm512_reduce_add_ps(x); }
  static float first(Vector x) { return _mm512_cvtss_f32(x); }

  static void transpose(Vector (&x)[16]) { transpose_words(x); }

  // 2^x: the fraction's polynomial on [0, 1), least relative error, scaled by the floor. -inf gives 0.
  static Vector exp2_degree4(Vector x) {  // 2.6e-6
    const Vector f = _mm512_reduce_ps(x, 0x01);
    Vector y = _mm512_fmadd_ps(f, set(0.01353416797F), set(0.0520114623F));
    y = _mm512_fmadd_ps(y, f, set(0.2414427544F));
    y = _mm512_fmadd_ps(y, f, set(0.6930038354F));
    y = _mm512_fmadd_ps(y, f, set(1.000002593F));
    return _mm512_scalef_ps(y, x);
  }
  static Vector exp2_degree6(Vector x) {  // 2e-9 before rounding
    const Vector f = _mm512_reduce_ps(x, 0x01);
    Vector y = _mm512_fmadd_ps(f, set(0.0002170225549F), set(0.001243968802F));
    y = _mm512_fmadd_ps(y, f, set(0.009678840948F));
    y = _mm512_fmadd_ps(y, f, set(0.05548334203F));
    y = _mm512_fmadd_ps(y, f, set(0.2402298363F));
    y = _mm512_fmadd_ps(y, f, set(0.6931469838F));
    y = _mm512_fmadd_ps(y, f, set(1.0F));
    return _mm512_scalef_ps(y, x);
  }

  static __mmask16 lanes(int64_t n) { return n >= 16 ? 0xffff : static_cast<__mmask16>((1U << n) - 1); }
};

// bf16 in, bf16 products: two dimensions (or keys) to a word, sums in float32.
struct Bf16Dot : VectorGroups {
  using Isa = Avx512;
  using Source = uint16_t;
  using Element = uint16_t;
  static constexpr int64_t kPair = 2, kBlockKeys = 256;
  static constexpr int kTileVectors = 4, kValueVectors = 4;

  static __m512 load(const Source* p, int64_t n) {
    if (n >= 32) return _mm512_castsi512_ps(_mm512_loadu_si512(p));
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16((1U << n) - 1, p));
  }
  static __m512 load_packed(const Element* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static void store_packed(Element* p, __m512 x) { _mm512_storeu_si512(p, _mm512_castps_si512(x)); }
  static __m512 broadcast(const Element* p) {
    int word;
    __builtin_memcpy(&word, p, sizeof(word));
    return _mm512_castsi512_ps(_mm512_set1_epi32(word));
  }
  static __m512 multiply_add(__m512 sum, __m512 a, __m512 b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
  }
  static void interleave(__m512 (&words)[2]) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const __m512i a = _mm512_castps_si512(words[0]), b = _mm512_castps_si512(words[1]);
    words[0] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, low, b));
    words[1] = _mm512_castsi512_ps(_mm512_permutex2var_epi16(a, high, b));
  }
  static __m512 exp2(__m512 x) { return Avx512::exp2_degree4(x); }  // far below the rounding to bf16
  static void store_probability(Element* out, const __m512 (&p)[2]) {
    _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]));
  }
  static void store_output(Source* out, __m512 x, int64_t n) {
    _mm256_mask_storeu_epi16(out, Avx512::lanes(n), (__m256i)_mm512_cvtneps_pbh(x));
  }
};

// float32 arithmetic with float32 in memory.
struct Float32 : VectorGroups {
  using Isa = Avx512;
  using Source = float;
  using Element = float;
  static constexpr int64_t kPair = 1, kBlockKeys = 256;
  static constexpr int kTileVectors = 4, kValueVectors = 4;

  static __m512 load(const Source* p, int64_t n) { return _mm512_maskz_loadu_ps(Avx512::lanes(n), p); }
  static __m512 load_packed(const Element* p) { return _mm512_loadu_ps(p); }
  static void store_packed(Element* p, __m512 x) { _mm512_storeu_ps(p, x); }
  static __m512 broadcast(const Element* p) { return _mm512_set1_ps(*p); }
  static __m512 multiply_add(__m512 sum, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, sum); }
  static void interleave(__m512 (&)[1]) {}
  static __m512 exp2(__m512 x) { return Avx512::exp2_degree6(x); }
  static void store_probability(Element* out, const __m512 (&p)[2]) {
    _mm512_storeu_ps(out, p[0]);
    _mm512_storeu_ps(out + 16, p[1]);
  }
  static void store_output(Source* out, __m512 x, int64_t n) { _mm512_mask_storeu_ps(out, Avx512::lanes(n), x); }
};

// float32 arithmetic with float16 in memory.
struct Float16 : Float32 {
  using Source = uint16_t;

  static __m512 load(const Source* p, int64_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(Avx512::lanes(n), p));
  }
  static void store_output(Source* out, __m512 x, int64_t n) {
    _mm256_mask_storeu_epi16(out, Avx512::lanes(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
};

}  // namespace
}  // namespace espalier::kernels
