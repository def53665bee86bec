// SPDX-License-Identifier: Apache-2.0
// Blocked attention with AVX2: float32 arithmetic for every dtype, bf16 and float16 widened on packing.
#include <immintrin.h>

#include "kernels/ops/attention/attention_block.h"
#include "kernels/support/transpose_avx2.h"

namespace espalier::kernels {
namespace {

struct Avx2 {
  using Vector = __m256;
  static constexpr int64_t kLanes = 8;

  static Vector zero() { return _mm256_setzero_ps(); }
  static Vector set(float x) { return _mm256_set1_ps(x); }
  static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  static Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static float first(Vector x) { return _mm256_cvtss_f32(x); }
  static float reduce_max(Vector x) {
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
  }
  static float reduce_add(Vector x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
  }

  static void transpose(Vector (&x)[8]) { transpose_words(x); }

  // 2^x for x <= 0: the fraction's polynomial on [0, 1), 2e-9 before rounding, times the floor's power. Below -126, and
  // for -inf, 0.
  static Vector exp2(Vector x) {
    const Vector is_normal = _mm256_cmp_ps(x, set(-126.0F), _CMP_GE_OQ);
    x = _mm256_max_ps(x, set(-126.0F));
    const Vector floor = _mm256_floor_ps(x), f = _mm256_sub_ps(x, floor);
    Vector y = _mm256_fmadd_ps(f, set(0.0002170225549F), set(0.001243968802F));
    y = _mm256_fmadd_ps(y, f, set(0.009678840948F));
    y = _mm256_fmadd_ps(y, f, set(0.05548334203F));
    y = _mm256_fmadd_ps(y, f, set(0.2402298363F));
    y = _mm256_fmadd_ps(y, f, set(0.6931469838F));
    y = _mm256_fmadd_ps(y, f, set(1.0F));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(floor), 23);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent)), is_normal);
  }
};

struct Float32 : VectorGroups {
  using Isa = Avx2;
  using Source = float;
  using Element = float;
  static constexpr int64_t kPair = 1, kBlockKeys = 128;
  static constexpr int kTileVectors = 2, kValueVectors = 2;

  static __m256 load(const Source* p, int64_t n) {
    if (n >= 8) return _mm256_loadu_ps(p);
    float full[8] = {};
    for (int64_t i = 0; i < n; ++i) full[i] = p[i];
    return _mm256_loadu_ps(full);
  }
  static void store_output(Source* out, __m256 x, int64_t n) {
    float full[8];
    _mm256_storeu_ps(full, x);
    for (int64_t i = 0; i < smaller(n, 8); ++i) out[i] = full[i];
  }
  static __m256 load_packed(const Element* p) { return _mm256_loadu_ps(p); }
  static void store_packed(Element* p, __m256 x) { _mm256_storeu_ps(p, x); }
  static __m256 broadcast(const Element* p) { return _mm256_broadcast_ss(p); }
  static __m256 multiply_add(__m256 sum, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, sum); }
  static void interleave(__m256 (&)[1]) {}
  static __m256 exp2(__m256 x) { return Avx2::exp2(x); }
  static void store_probability(Element* out, const __m256 (&p)[2]) {
    _mm256_storeu_ps(out, p[0]);
    _mm256_storeu_ps(out + 8, p[1]);
  }
};

// 16-bit numbers in memory; `Half` says how they widen and narrow.
template <class Half>
struct Widened : Float32 {
  using Source = uint16_t;

  static __m256 load(const Source* p, int64_t n) {
    if (n >= 8) return Half::widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    uint16_t full[8] = {};
    for (int64_t i = 0; i < n; ++i) full[i] = p[i];
    return Half::widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(full)));
  }
  static void store_output(Source* out, __m256 x, int64_t n) {
    uint16_t full[8];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(full), Half::narrow(x));
    for (int64_t i = 0; i < smaller(n, 8); ++i) out[i] = full[i];
  }
};

struct HalfBits {
  static __m256 widen(__m128i x) { return _mm256_cvtph_ps(x); }
  static __m128i narrow(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
};

struct Bf16Bits {
  static __m256 widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  // To nearest, ties to even; NaN stays NaN.
  static __m128i narrow(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  }
};

}  // namespace

const AttentionKernels* attention_avx2(ElementType dtype) {
  static constexpr AttentionKernels kFloat32 = kernels_of<Float32>("avx2");
  static constexpr AttentionKernels kFloat16 = kernels_of<Widened<HalfBits>>("avx2");
  static constexpr AttentionKernels kBf16 = kernels_of<Widened<Bf16Bits>>("avx2");
  if (dtype == ElementType::kBFloat16) return &kBf16;
  return dtype == ElementType::kFloat32 ? &kFloat32 : &kFloat16;
}

}  // namespace espalier::kernels
