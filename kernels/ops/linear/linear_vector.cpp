// SPDX-License-Identifier: Apache-2.0
// Memory-bound: the weight is streamed once, some outputs at a time, each loaded vector meeting all rows of x, which
// stay in the first cache. Bytes read: out · in · element size, plus x.
#include "kernels/ops/linear/linear.h"
#include "kernels/support/vec.h"

namespace espalier::kernels {
namespace {

constexpr int64_t kPrefetchBytes = 1024;  // ahead within each stream

// Streams side by side, so that loads do not wait for sums; AVX2 has half the registers for them.
#ifdef __AVX512F__
template <int64_t Rows>
constexpr int64_t kOutputs = 4;
#else
template <int64_t Rows>
constexpr int64_t kOutputs = Rows == 1   ? 4
                             : Rows <= 3 ? 2
                                         : 1;
#endif

// One step of a dot product.
template <typename T>
struct FmaStep {
  static constexpr int64_t kWidth = 16;
  using Vector = Floats;
  static Vector load(const T* p) { return load16(p); }
  static Vector load(const T* p, int64_t count) { return load16(p, tail(count)); }
  static Floats add(Floats sums, Vector a, Vector b) { return mul_add(a, b, sums); }
};
template <typename T>
struct StepOf {
  using Type = FmaStep<T>;
};
#ifdef __AVX512BF16__
// 32 elements with the pair instruction.
struct PairStep {
  static constexpr int64_t kWidth = 32;
  using Vector = __m512bh;
  static Vector load(const BFloat16Bits* p) { return reinterpret_cast<Vector>(_mm512_loadu_si512(p)); }
  static Vector load(const BFloat16Bits* p, int64_t count) {
    const auto there = static_cast<__mmask32>((uint64_t{1} << count) - 1);
    return reinterpret_cast<Vector>(_mm512_maskz_loadu_epi16(there, p));
  }
  static Floats add(Floats sums, Vector a, Vector b) { return _mm512_dpbf16_ps(sums, a, b); }
};
template <>
struct StepOf<BFloat16Bits> {
  using Type = PairStep;
};
#endif

template <typename Step, int64_t Rows, int64_t Outputs, typename T>
void dot_block(const T* x, const T* weight, T* out, const LinearShape& shape, int64_t o) {
  Floats sums[Outputs][Rows];
  for (auto& of_output : sums)
    for (Floats& s : of_output) s = all(0.0F);
  const T* w = weight + o * shape.in;
  const auto step = [&](int64_t i, auto... count) {
    for (int64_t j = 0; j < Outputs; ++j) {
      const auto loaded = Step::load(w + j * shape.in + i, count...);
      for (int64_t r = 0; r < Rows; ++r)
        sums[j][r] = Step::add(sums[j][r], loaded, Step::load(x + r * shape.in + i, count...));
    }
  };
  int64_t i = 0;
  for (; i + Step::kWidth <= shape.in; i += Step::kWidth) {
    for (int64_t j = 0; j < Outputs; ++j)
      _mm_prefetch(reinterpret_cast<const char*>(w + j * shape.in + i) + kPrefetchBytes, _MM_HINT_T0);
    step(i);
  }
  if (i < shape.in) step(i, shape.in - i);
  for (int64_t j = 0; j < Outputs; ++j)
    for (int64_t r = 0; r < Rows; ++r) store_one(out + r * shape.out + o + j, sum(sums[j][r]));
}

template <int64_t Rows, typename T>
void choose_rows(const T* x, const T* weight, T* out, const LinearShape& shape, int64_t begin, int64_t end) {
  if (shape.rows != Rows) {
    if constexpr (Rows > 1) choose_rows<Rows - 1>(x, weight, out, shape, begin, end);
    return;
  }
  using Step = typename StepOf<T>::Type;
  int64_t o = begin;
  for (; o + kOutputs<Rows> <= end; o += kOutputs<Rows>)
    dot_block<Step, Rows, kOutputs<Rows>>(x, weight, out, shape, o);
  for (; o < end; ++o) dot_block<Step, Rows, 1>(x, weight, out, shape, o);
}

}  // namespace

void ESPALIER_LEVEL::linear_rows(ElementType type, const void* x, const void* weight, void* out,
                                 const LinearShape& shape, int64_t begin, int64_t end) {
  visit_bits(type, [&]<typename T>(T*) {
    choose_rows<kFewRows>(static_cast<const T*>(x), static_cast<const T*>(weight), static_cast<T*>(out), shape, begin,
                          end);
  });
}

}  // namespace espalier::kernels
