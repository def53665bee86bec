// SPDX-License-Identifier: Apache-2.0
#include "kernels/rms_norm.h"
#include "kernels/vec_avx512.h"

namespace espalier::kernels {
namespace {

// Four sums, so that an addition need not wait for the one before it.
template <typename T>
float sum_of_squares(const T* x, int64_t d) {
  __m512 sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= d; i += 64)
    for (int64_t j = 0; j < 4; ++j) {
      const __m512 v = load16(x + i + 16 * j);
      sums[j] = _mm512_fmadd_ps(v, v, sums[j]);
    }
  for_each_16(d - i, [&](int64_t j, auto... mask) {
    const __m512 v = load16(x + i + j, mask...);
    sums[0] = _mm512_fmadd_ps(v, v, sums[0]);
  });
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

// The second pass reads the row from the first-level cache (a row of 4096 is 8 or 16 KiB).
template <typename T>
void rms_norm_rows(const T* x, const T* weight, T* out, int64_t begin, int64_t end, int64_t d, float eps) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x + r * d;
    const __m512 mean = _mm512_set1_ps(sum_of_squares(row, d) / static_cast<float>(d) + eps);
    const __m512 scale = _mm512_div_ps(_mm512_set1_ps(1.0F), _mm512_sqrt_ps(mean));
    for_each_16(d, [&](int64_t i, auto... mask) {
      const __m512 normed = rounded(row, _mm512_mul_ps(load16(row + i, mask...), scale));
      store16(out + r * d + i, _mm512_mul_ps(normed, load16(weight + i, mask...)), mask...);
    });
  }
}

}  // namespace

void rms_norm_avx512(ElementType type, const void* x, const void* weight, void* out, int64_t begin, int64_t end,
                     int64_t d, float eps) {
  visit_bits(type, [&]<typename T>(T*) {
    rms_norm_rows(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(out), begin, end, d, eps);
  });
}

}  // namespace espalier::kernels
