// SPDX-License-Identifier: Apache-2.0
#include "kernels/attention_probe_avx512.h"

// gcc 12 warns about the "undefined" operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = 48;  // DotPanel::kColumns

// e^x to about one unit in the last place: x = n ln 2 + r, |r| <= ln 2 / 2, Taylor's terms up to r^7 (the rest is below
// 2^-27). NaN stays NaN; the clamp keeps n finite and lies where float32 has long become 0 or infinity.
__m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(89.0F), _mm512_max_ps(_mm512_set1_ps(-126.0F), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504F)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  // ln 2 in two parts, the first with so few bits that n times it is exact.
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375F), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4F), r);
  __m512 sum = _mm512_set1_ps(1.0F / 5040);
  static constexpr float kTerms[] = {1.0F / 720, 1.0F / 120, 1.0F / 24, 1.0F / 6, 0.5F, 1.0F, 1.0F};
  for (const float term : kTerms) {
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  }
  return _mm512_scalef_ps(sum, n);
}

}  // namespace

void exponentiate_avx512(float* lines, int64_t num_lines, const float* lse, float scale) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < num_lines; ++i) {
    const __m512 offset = _mm512_set1_ps(lse[i]);
    const __mmask16 has_keys = lse[i] == -__builtin_inff() ? 0 : 0xffff;
    for (int64_t c = 0; c < kColumns; c += 16) {
      float* at = lines + i * kColumns + c;
      _mm512_storeu_ps(
          at, _mm512_maskz_mov_ps(has_keys, exponential(_mm512_fmsub_ps(_mm512_loadu_ps(at), factor, offset))));
    }
  }
}

}  // namespace espalier::kernels
