// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/cosine_score/cosine_score_vector.h"

#include "kernels/support/vec.h"

namespace espalier::kernels {

namespace {

// Sums a product, so that neither the latency of the additions nor the rounding of one long sum counts.
#ifdef __AVX512F__
template <int kDirections>
constexpr int kSums = kDirections > 2 ? 2 : 4;
#else
template <int kDirections>
constexpr int kSums = kDirections > 1 ? 1 : 2;
#endif

template <int kDirections, typename T>
void sums(const T* row, int64_t d, const float* direction, float* dots, float* square) {
  constexpr int kParts = kSums<kDirections>;
  Floats own[kParts], dot[kDirections + 1][kParts];
#pragma GCC unroll 4
  for (int s = 0; s < kParts; ++s) {
    own[s] = all(0.0F);
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v) dot[v][s] = all(0.0F);
  }
  const auto step = [&](int s, int64_t k, auto... there) __attribute__((always_inline)) {
    const Floats value = load16(row + k, there...);
    own[s] = mul_add(value, value, own[s]);
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v)
      dot[v][s] = mul_add(value, load16(direction + v * d + k, there...), dot[v][s]);
  };
  int64_t k = 0;
  while (k + 16 * kParts <= d) {
#pragma GCC unroll 4
    for (int s = 0; s < kParts; ++s, k += 16) step(s, k);
  }
  for_each_16(d - k, [&](int64_t i, auto... there) { step(0, k + i, there...); });
#pragma GCC unroll 4
  for (int s = 1; s < kParts; ++s) {
    own[0] = own[0] + own[s];
#pragma GCC unroll 4
    for (int v = 0; v < kDirections; ++v) dot[v][0] = dot[v][0] + dot[v][s];
  }
  *square = sum(own[0]);
#pragma GCC unroll 4
  for (int v = 0; v < kDirections; ++v) dots[v] = sum(dot[v][0]);
}

}  // namespace

void ESPALIER_LEVEL::row_cosine_sums(const void* row, ElementType type, int64_t d, const float* direction,
                                     int64_t num_directions, float* dots, float* square) {
  visit_bits(type, [&]<typename T>(T*) {
    const auto* elements = static_cast<const T*>(row);
    switch (num_directions) {
      case 0:
        return sums<0>(elements, d, direction, dots, square);
      case 1:
        return sums<1>(elements, d, direction, dots, square);
      case 2:
        return sums<2>(elements, d, direction, dots, square);
      case 3:
        return sums<3>(elements, d, direction, dots, square);
      default:
        return sums<4>(elements, d, direction, dots, square);
    }
  });
}

}  // namespace espalier::kernels
