// SPDX-License-Identifier: Apache-2.0
// Memory-bound at one byte per weight: two outputs at a time, each widened vector of sixteen weights meeting all rows
// of x.
#include "kernels/ops/linear_int8/linear_int8.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

constexpr int64_t kPrefetchBytes = 1024;

#ifdef __AVX512F__
template <int64_t Rows>
constexpr int64_t kOutputs = 2;
#else
template <int64_t Rows>
constexpr int64_t kOutputs = Rows <= 3 ? 2 : 1;
#endif

template <int64_t Rows, int64_t Outputs, typename T>
void dot_block(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape, int64_t o) {
  Floats sums[Outputs][Rows];
  for (auto& of_output : sums)
    for (Floats& s : of_output) s = all(0.0F);
  const int8_t* w = weight + o * shape.in;
  const auto step = [&](int64_t i, auto... there) {
    Floats rows[Rows];
    for (int64_t r = 0; r < Rows; ++r) rows[r] = load16(x + r * shape.in + i, there...);
    for (int64_t j = 0; j < Outputs; ++j) {
      const Floats wide = widen16(w + j * shape.in + i, there...);
      for (int64_t r = 0; r < Rows; ++r) sums[j][r] = mul_add(wide, rows[r], sums[j][r]);
    }
  };
  int64_t i = 0;
  for (; i + 16 <= shape.in; i += 16) {
    if (i % 64 == 0)
      for (int64_t j = 0; j < Outputs; ++j)
        _mm_prefetch(reinterpret_cast<const char*>(w + j * shape.in + i) + kPrefetchBytes, _MM_HINT_T0);
    step(i);
  }
  if (i < shape.in) step(i, tail(shape.in - i));
  for (int64_t j = 0; j < Outputs; ++j)
    for (int64_t r = 0; r < Rows; ++r) store_one(out + r * shape.out + o + j, sum(sums[j][r]) * scale[o + j]);
}

template <int64_t Rows, typename T>
void choose_rows(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape, int64_t begin,
                 int64_t end) {
  if (shape.rows != Rows) {
    if constexpr (Rows > 1) choose_rows<Rows - 1>(x, weight, scale, out, shape, begin, end);
    return;
  }
  int64_t o = begin;
  for (; o + kOutputs<Rows> <= end; o += kOutputs<Rows>)
    dot_block<Rows, kOutputs<Rows>>(x, weight, scale, out, shape, o);
  for (; o < end; ++o) dot_block<Rows, 1>(x, weight, scale, out, shape, o);
}

}  // namespace

void ESPALIER_LEVEL::linear_int8_rows(ElementType type, const void* x, const int8_t* weight, const float* scale,
                                      void* out, const LinearShape& shape, int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    choose_rows<kFewRows>(static_cast<const T*>(x), weight, scale, static_cast<T*>(out), shape, begin, end);
  });
}

}  // namespace espalier::kernels
