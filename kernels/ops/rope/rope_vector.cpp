// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope/rope.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

template <typename T>
void rope_row(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
  for_each_16(half, [&](int64_t i, auto... there) {
    const Floats low = load16(x + i, there...);
    const Floats high = load16(x + half + i, there...);
    const Floats turned_low = high * load16(sin + i, there...);
    const Floats turned_high = low * load16(sin + half + i, there...);
    store16(out + i, mul_sub(low, load16(cos + i, there...), turned_low), there...);
    store16(out + half + i, mul_add(high, load16(cos + half + i, there...), turned_high), there...);
  });
}

template <typename T>
void rope_tokens(const T* x, const T* cos, const T* sin, T* out, const RopeShape& shape, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t)
    for (int64_t h = 0; h < shape.heads; ++h)
      rope_row(x + t * shape.token_stride + h * shape.head_stride, cos + t * shape.d, sin + t * shape.d,
               out + (t * shape.heads + h) * shape.d, shape.d / 2);
}

}  // namespace

void ESPALIER_LEVEL::rope(ElementType type, const void* x, const void* cos, const void* sin, void* out,
                          const RopeShape& shape, int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    rope_tokens(static_cast<const T*>(x), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(out),
                shape, begin, end);
  });
}

}  // namespace espalier::kernels
