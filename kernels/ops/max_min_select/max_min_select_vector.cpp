// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {

float ESPALIER_LEVEL::row_difference(const float* x, const float* y, int64_t d, bool is_squared) {
  Floats sums[2] = {all(0.0F), all(0.0F)};
  for_each_16(d, [&](int64_t i, auto... there) {
    const Floats difference = load16(x + i, there...) - load16(y + i, there...);
    Floats& part = sums[i / 16 % 2];
    part = is_squared ? mul_add(difference, difference, part) : part + magnitude(difference);
  });
  return sum(sums[0] + sums[1]);
}

}  // namespace espalier::kernels
