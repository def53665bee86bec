// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

template <typename T>
void silu_mul_rows(const T* gate, const T* up, T* out, const SiluMulShape& shape, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* g = gate + r * shape.gate_stride;
    const T* u = up + r * shape.up_stride;
    for_each_16(shape.d, [&](int64_t i, auto... there) {
      const Floats x = load16(g + i, there...);
      const Floats e = exponential(all(0.0F) - x);
      const Floats silu = x / (all(1.0F) + e);
      store16(out + r * shape.d + i, silu * load16(u + i, there...), there...);
    });
  }
}

}  // namespace

void ESPALIER_LEVEL::silu_mul(ElementType type, const void* gate, const void* up, void* out, const SiluMulShape& shape,
                              int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    silu_mul_rows(static_cast<const T*>(gate), static_cast<const T*>(up), static_cast<T*>(out), shape, begin, end);
  });
}

}  // namespace espalier::kernels
