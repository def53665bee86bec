// SPDX-License-Identifier: Apache-2.0
#include "kernels/cosine_score_avx512.h"

// gcc 12 warns about the "undefined" operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace espalier::kernels {

namespace {

template <ElementType kType>
__m512 load(const void* row, int64_t k, __mmask16 mask) {
  if constexpr (kType == ElementType::kFloat32) {
    return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(row) + k);
  } else {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(row) + k);
    if constexpr (kType == ElementType::kBFloat16) {
      return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    } else {
      return _mm512_cvtph_ps(bits);
    }
  }
}

// Four sums a product, so that neither the latency of the additions nor the rounding of one long sum counts.
template <ElementType kType, int kDirections>
void sums(const void* row, int64_t d, const float* direction, float* dots, float* square) {
  constexpr int kSums = kDirections > 2 ? 2 : 4;
  __m512 own[kSums], dot[kDirections + 1][kSums];
#pragma GCC unroll 4
  for (int s = 0; s < kSums; ++s) {
    own[s] = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v) dot[v][s] = _mm512_setzero_ps();
  }
  int64_t k = 0;
  const auto step = [&](int s, __mmask16 mask) __attribute__((always_inline)) {
    const __m512 value = load<kType>(row, k, mask);
    own[s] = _mm512_fmadd_ps(value, value, own[s]);
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v) {
      dot[v][s] = _mm512_fmadd_ps(value, _mm512_maskz_loadu_ps(mask, direction + v * d + k), dot[v][s]);
    }
  };
  while (k + 16 * kSums <= d) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s, k += 16) step(s, 0xffff);
  }
  for (; k < d; k += 16) step(0, d - k >= 16 ? 0xffff : static_cast<__mmask16>((1U << (d - k)) - 1));
#pragma GCC unroll 4
  for (int s = 1; s < kSums; ++s) {
    own[0] = _mm512_add_ps(own[0], own[s]);
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v) dot[v][0] = _mm512_add_ps(dot[v][0], dot[v][s]);
  }
  *square = _mm512_reduce_add_ps(own[0]);
#pragma GCC unroll 4
  for (int v = 0; v < kDirections; ++v) dots[v] = _mm512_reduce_add_ps(dot[v][0]);
}

template <ElementType kType>
void sums_of(const void* row, int64_t d, const float* direction, int64_t num_directions, float* dots, float* square) {
  switch (num_directions) {
    case 0:
      return sums<kType, 0>(row, d, direction, dots, square);
    case 1:
      return sums<kType, 1>(row, d, direction, dots, square);
    case 2:
      return sums<kType, 2>(row, d, direction, dots, square);
    case 3:
      return sums<kType, 3>(row, d, direction, dots, square);
    default:
      return sums<kType, 4>(row, d, direction, dots, square);
  }
}

}  // namespace

void row_cosine_sums_avx512(const void* row, ElementType type, int64_t d, const float* direction,
                            int64_t num_directions, float* dots, float* square) {
  switch (type) {
    case ElementType::kFloat32:
      return sums_of<ElementType::kFloat32>(row, d, direction, num_directions, dots, square);
    case ElementType::kBFloat16:
      return sums_of<ElementType::kBFloat16>(row, d, direction, num_directions, dots, square);
    case ElementType::kFloat16:
      return sums_of<ElementType::kFloat16>(row, d, direction, num_directions, dots, square);
  }
}

}  // namespace espalier::kernels
