// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_states/merge_states.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

// A part of weight 0 may hold anything, NaN included: the other is scaled alone.
template <typename T>
void merge_row(const T* a, const T* b, MergeWeights weight, int64_t d, T* out) {
  const Floats share_a = all(weight.a), share_b = all(weight.b);
  if (weight.a != 0 && weight.b != 0)
    return for_each_16(d, [&](int64_t i, auto... there) {
      store16(out + i, mul_add(share_a, load16(a + i, there...), share_b * load16(b + i, there...)), there...);
    });
  const T* only = weight.a != 0 ? a : b;
  const Floats share = weight.a != 0 ? share_a : share_b;
  const bool is_empty = weight.a == 0 && weight.b == 0;
  for_each_16(d, [&](int64_t i, auto... there) {
    store16(out + i, is_empty ? all(0.0F) : share * load16(only + i, there...), there...);
  });
}

}  // namespace

void ESPALIER_LEVEL::merge_rows(ElementType type, const void* a, const void* b, const MergeWeights* weights,
                                int64_t count, int64_t d, void* out) {
  visit_bits(type, [&]<typename T>(T*) {
    for (int64_t i = 0; i < count; ++i)
      merge_row(static_cast<const T*>(a) + i * d, static_cast<const T*>(b) + i * d, weights[i], d,
                static_cast<T*>(out) + i * d);
  });
}

}  // namespace espalier::kernels
