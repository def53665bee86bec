// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/attention_probe/attention_probe_vector.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = 48;  // DotPanel::kColumns

}  // namespace

void ESPALIER_LEVEL::exponentiate(float* lines, int64_t num_lines, const float* lse, float scale) {
  for (int64_t i = 0; i < num_lines; ++i) {
    float* line = lines + i * kColumns;
    const bool has_keys = lse[i] != -__builtin_inff();
    for (int64_t c = 0; c < kColumns; c += 16)
      store16(line + c, has_keys ? exponential(mul_sub(load16(line + c), all(scale), all(lse[i]))) : all(0.0F));
  }
}

}  // namespace espalier::kernels
