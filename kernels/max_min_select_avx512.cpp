// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include <cstdint>

namespace espalier::kernels {

float row_difference_avx512(const float* x, const float* y, int64_t d, bool is_squared) {
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < d; i += 16) {
    const int64_t left = d - i;
    const __mmask16 there = left >= 16 ? 0xffff : static_cast<__mmask16>((1U << left) - 1);
    const __m512 difference = _mm512_sub_ps(_mm512_maskz_loadu_ps(there, x + i), _mm512_maskz_loadu_ps(there, y + i));
    __m512& part = sum[i / 16 % 2];
    part = is_squared ? _mm512_fmadd_ps(difference, difference, part) : _mm512_add_ps(part, _mm512_abs_ps(difference));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

}  // namespace espalier::kernels
