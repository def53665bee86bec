// SPDX-License-Identifier: Apache-2.0
#include "kernels/rope.h"
#include "kernels/vec_avx512.h"

namespace espalier::kernels {
namespace {

template <typename T>
void rope_row(const T* x, const T* cos, const T* sin, T* out, int64_t half) {
  for_each_16(half, [&](int64_t i, auto... mask) {
    const __m512 low = load16(x + i, mask...);
    const __m512 high = load16(x + half + i, mask...);
    const __m512 turned_low = _mm512_mul_ps(high, load16(sin + i, mask...));
    const __m512 turned_high = _mm512_mul_ps(low, load16(sin + half + i, mask...));
    store16(out + i, _mm512_fmsub_ps(low, load16(cos + i, mask...), turned_low), mask...);
    store16(out + half + i, _mm512_fmadd_ps(high, load16(cos + half + i, mask...), turned_high), mask...);
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

void rope_avx512(ElementType type, const void* x, const void* cos, const void* sin, void* out, const RopeShape& shape,
                 int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    rope_tokens(static_cast<const T*>(x), static_cast<const T*>(cos), static_cast<const T*>(sin), static_cast<T*>(out),
                shape, begin, end);
  });
}

}  // namespace espalier::kernels
