// SPDX-License-Identifier: Apache-2.0
// Memory-bound at a byte a weight: two outputs at a time, each widened vector of sixteen weights meeting all rows of x.
#include "kernels/linear_int8.h"
#include "kernels/vec_avx512.h"

namespace espalier::kernels {
namespace {

constexpr int64_t kOutputs = 2;
constexpr int64_t kPrefetchBytes = 1024;

__m512 widen16(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
__m512 widen16(const int8_t* p, __mmask16 mask) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, p)));
}

void store(float* out, float value) {
  *out = value;
}
template <typename Half>
void store(Half* out, float value) {
  store16(out, _mm512_set1_ps(value), __mmask16{1});
}

template <int64_t Rows, int64_t Outputs, typename T>
void dot_block(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape, int64_t o) {
  __m512 sums[Outputs][Rows];
  for (auto& of_output : sums)
    for (__m512& sum : of_output) sum = _mm512_setzero_ps();
  const int8_t* w = weight + o * shape.in;
  const auto step = [&](int64_t i, auto... mask) {
    __m512 rows[Rows];
    for (int64_t r = 0; r < Rows; ++r) rows[r] = load16(x + r * shape.in + i, mask...);
    for (int64_t j = 0; j < Outputs; ++j) {
      const __m512 wide = widen16(w + j * shape.in + i, mask...);
      for (int64_t r = 0; r < Rows; ++r) sums[j][r] = _mm512_fmadd_ps(wide, rows[r], sums[j][r]);
    }
  };
  int64_t i = 0;
  for (; i + 16 <= shape.in; i += 16) {
    if (i % 64 == 0)
      for (int64_t j = 0; j < Outputs; ++j)
        _mm_prefetch(reinterpret_cast<const char*>(w + j * shape.in + i) + kPrefetchBytes, _MM_HINT_T0);
    step(i);
  }
  if (i < shape.in) step(i, tail_mask(shape.in - i));
  for (int64_t j = 0; j < Outputs; ++j)
    for (int64_t r = 0; r < Rows; ++r)
      store(out + r * shape.out + o + j, _mm512_reduce_add_ps(sums[j][r]) * scale[o + j]);
}

template <int64_t Rows, typename T>
void choose_rows(const T* x, const int8_t* weight, const float* scale, T* out, const LinearShape& shape, int64_t begin,
                 int64_t end) {
  if (shape.rows != Rows) {
    if constexpr (Rows > 1) choose_rows<Rows - 1>(x, weight, scale, out, shape, begin, end);
    return;
  }
  int64_t o = begin;
  for (; o + kOutputs <= end; o += kOutputs) dot_block<Rows, kOutputs>(x, weight, scale, out, shape, o);
  for (; o < end; ++o) dot_block<Rows, 1>(x, weight, scale, out, shape, o);
}

}  // namespace

void linear_int8_avx512(ElementType type, const void* x, const int8_t* weight, const float* scale, void* out,
                        const LinearShape& shape, int64_t begin, int64_t end) {
  const auto run = [&]<typename T>(T*) {
    choose_rows<kFewRows>(static_cast<const T*>(x), weight, scale, static_cast<T*>(out), shape, begin, end);
  };
  switch (type) {
    case ElementType::kBFloat16:
      return run(static_cast<BFloat16Bits*>(nullptr));
    case ElementType::kFloat32:
      return run(static_cast<float*>(nullptr));
    case ElementType::kFloat16:
      return run(static_cast<Float16Bits*>(nullptr));
  }
}

}  // namespace espalier::kernels
