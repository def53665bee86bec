// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

// Four sums, so that an addition need not wait for the one before it.
template <typename T>
float sum_of_squares(const T* x, int64_t d) {
  Floats sums[4] = {};
  int64_t i = 0;
  for (; i + 64 <= d; i += 64)
    for (int64_t j = 0; j < 4; ++j) {
      const Floats v = load16(x + i + 16 * j);
      sums[j] = mul_add(v, v, sums[j]);
    }
  for_each_16(d - i, [&](int64_t j, auto... there) {
    const Floats v = load16(x + i + j, there...);
    sums[0] = mul_add(v, v, sums[0]);
  });
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The second pass reads the row from the first-level cache (a row of 4096 is 8 or 16 KiB).
template <typename T>
void rms_norm_rows(const T* x, const T* weight, T* out, int64_t begin, int64_t end, int64_t d, float eps) {
  for (int64_t r = begin; r < end; ++r) {
    const T* row = x + r * d;
    const Floats mean = all(sum_of_squares(row, d) / static_cast<float>(d) + eps);
    const Floats scale = all(1.0F) / root(mean);
    for_each_16(d, [&](int64_t i, auto... there) {
      const Floats normed = rounded(row, load16(row + i, there...) * scale);
      store16(out + r * d + i, normed * load16(weight + i, there...), there...);
    });
  }
}

}  // namespace

void ESPALIER_LEVEL::rms_norm(ElementType type, const void* x, const void* weight, void* out, int64_t begin,
                              int64_t end, int64_t d, float eps) {
  visit_bits(type, [&]<typename T>(T*) {
    rms_norm_rows(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(out), begin, end, d, eps);
  });
}

}  // namespace espalier::kernels
