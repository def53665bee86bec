// SPDX-License-Identifier: Apache-2.0
#include "kernels/silu_mul.h"
#include "kernels/vec_avx512.h"

namespace espalier::kernels {
namespace {

// e^x = 2^n · e^r with n = round(x / ln 2), |r| <= ln 2 / 2, e^r by its Taylor series to r^7 (error below 2^-27). 0 and
// infinity where float ends; NaN stays NaN: min and max give their second operand then.
__m512 exp16(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0F), _mm512_min_ps(_mm512_set1_ps(100.0F), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)), 0);
  // ln 2 in two parts, the first short enough that n · part is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  __m512 series = _mm512_set1_ps(1.0F / 5040.0F);
  constexpr float kCoefficients[] = {1.0F / 720.0F, 1.0F / 120.0F, 1.0F / 24.0F, 1.0F / 6.0F, 0.5F, 1.0F, 1.0F};
  for (const float coefficient : kCoefficients) series = _mm512_fmadd_ps(series, r, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(series, n);
}

template <typename T>
void silu_mul_rows(const T* gate, const T* up, T* out, const SiluMulShape& shape, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* g = gate + r * shape.gate_stride;
    const T* u = up + r * shape.up_stride;
    for_each_16(shape.d, [&](int64_t i, auto... mask) {
      const __m512 x = load16(g + i, mask...);
      const __m512 e = exp16(_mm512_sub_ps(_mm512_setzero_ps(), x));
      const __m512 silu = _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0F), e));
      store16(out + r * shape.d + i, _mm512_mul_ps(silu, load16(u + i, mask...)), mask...);
    });
  }
}

}  // namespace

void silu_mul_avx512(ElementType type, const void* gate, const void* up, void* out, const SiluMulShape& shape,
                     int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    silu_mul_rows(static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(out), shape, begin, end);
  });
}

}  // namespace espalier::kernels
