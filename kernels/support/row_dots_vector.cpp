// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/row_dots_vector.h"

#include "kernels/support/vec.h"
#ifdef __AVX512F__
#include "kernels/support/transpose_avx512.h"
#else
#include "kernels/support/transpose_avx2.h"
#endif

namespace espalier::kernels {

namespace {

constexpr int64_t kStride = 48;  // DotPanel::kColumns: three vectors

#ifdef __AVX512F__

// Sixteen words of a row from word k on, zero behind its end.
__m512i load_words(const void* row, int64_t k, int64_t d, ElementType type, bool has_pairs) {
  if (type == ElementType::kFloat32) {
    const int64_t left = d - k;
    return _mm512_maskz_loadu_epi32(left >= 16 ? 0xffff : (1U << left) - 1, static_cast<const float*>(row) + k);
  }
  const auto* elements = static_cast<const uint16_t*>(row);
  if (has_pairs) {
    const int64_t left = d - 2 * k;
    return _mm512_maskz_loadu_epi16(left >= 32 ? 0xffffffffU : (1U << left) - 1, elements + 2 * k);
  }
  const int64_t left = d - k;
  const __m256i values = _mm256_maskz_loadu_epi16(left >= 16 ? 0xffff : (1U << left) - 1, elements + k);
  if (type == ElementType::kBFloat16) return _mm512_slli_epi32(_mm512_cvtepu16_epi32(values), 16);
  return _mm512_castps_si512(_mm512_cvtph_ps(values));
}

#else

// Elements k .. k + 16 of a row as floats, zero behind its end.
template <typename T>
Floats load_words(const T* row, int64_t k, int64_t d) {
  return d - k >= 16 ? load16(row + k) : load16(row + k, tail(d - k));
}

#endif

template <bool kPairs>
Floats multiply_add(Floats sums, uint32_t word, Floats column) {
#ifdef __AVX512BF16__
  if constexpr (kPairs)
    return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(word))),
                            reinterpret_cast<__m512bh>(column));
#endif
  return mul_add(all(__builtin_bit_cast(float, word)), column, sums);
}

// kRows rows times 16 · kVectors columns, the sums in registers.
template <int kRows, int kVectors, bool kPairs>
void block(const uint32_t* const* rows, int64_t word, int64_t num_words, const uint32_t* panel, bool is_first,
           float* out) {
  Floats sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sums[r][v] = all(0.0F);
  }
  const uint32_t* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = rows[r] + word;
  for (int64_t k = 0; k < num_words; ++k) {
    Floats column[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v)
      column[v] = load16(reinterpret_cast<const float*>(panel + (word + k) * kStride + 16 * v));
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sums[r][v] = multiply_add<kPairs>(sums[r][v], row[r][k], column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      float* at = out + r * kStride + 16 * v;
      store16(at, is_first ? sums[r][v] : load16(at) + sums[r][v]);
    }
  }
}

// As many rows at once as there are registers for their sums.
#ifdef __AVX512F__
template <int kVectors>
constexpr int kMostRows = 8;
#else
template <int kVectors>
constexpr int kMostRows = kVectors == 1 ? 4 : 2;
#endif

template <int kRows, int kVectors, bool kPairs>
void all_rows(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words, const uint32_t* panel,
              bool is_first, float* out) {
  int64_t r = 0;
  for (; r + kRows <= num_rows; r += kRows)
    block<kRows, kVectors, kPairs>(rows + r, word, num_words, panel, is_first, out + r * kStride);
  if constexpr (kRows > 1)
    all_rows<kRows / 2, kVectors, kPairs>(rows + r, num_rows - r, word, num_words, panel, is_first, out + r * kStride);
}

template <bool kPairs>
void all_columns(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words, const uint32_t* panel,
                 int64_t count, bool is_first, float* out) {
  if (count > 32) return all_rows<kMostRows<3>, 3, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
  if (count > 16) return all_rows<kMostRows<2>, 2, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
  all_rows<kMostRows<1>, 1, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
}

}  // namespace

#ifdef __AVX512F__

void ESPALIER_LEVEL::convert_row(const void* row, int64_t d, ElementType type, bool has_pairs, uint32_t* words) {
  const int64_t num_words = has_pairs ? (d + 1) / 2 : d;
  for (int64_t k = 0; k < num_words; k += 16) {
    const int64_t left = num_words - k;
    _mm512_mask_storeu_epi32(words + k, left >= 16 ? 0xffff : (1U << left) - 1, load_words(row, k, d, type, has_pairs));
  }
}

void ESPALIER_LEVEL::pack_panel(const void* const* rows, int64_t count, int64_t d, ElementType type, bool has_pairs,
                                uint32_t* panel) {
  const int64_t num_words = has_pairs ? (d + 1) / 2 : d;
  for (int64_t c = 0; c < count; c += 16) {
    for (int64_t k = 0; k < num_words; k += 16) {
      __m512 v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = c + i < count ? _mm512_castsi512_ps(load_words(rows[c + i], k, d, type, has_pairs)) : all(0.0F);
      transpose_words(v);
      const int64_t left = num_words - k;
      for (int64_t i = 0; i < (left < 16 ? left : 16); ++i) _mm512_store_ps(panel + (k + i) * kStride + c, v[i]);
    }
  }
}

#else

void ESPALIER_LEVEL::convert_row(const void* row, int64_t d, ElementType type, bool, uint32_t* words) {
  visit_bits(type, [&]<typename T>(T*) {
    const auto* elements = static_cast<const T*>(row);
    for_each_16(d, [&](int64_t i, auto... there) {
      store16(reinterpret_cast<float*>(words + i), load16(elements + i, there...), there...);
    });
  });
}

void ESPALIER_LEVEL::pack_panel(const void* const* rows, int64_t count, int64_t d, ElementType type, bool,
                                uint32_t* panel) {
  visit_bits(type, [&]<typename T>(T*) {
    // Columns up to a multiple of 16, eight at a time.
    for (int64_t c = 0; c < (count + 15) / 16 * 16; c += 8) {
      for (int64_t k = 0; k < d; k += 16) {
        __m256 low[8], high[8];
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
          const Floats v = c + i < count ? load_words(static_cast<const T*>(rows[c + i]), k, d) : all(0.0F);
          low[i] = v.low;
          high[i] = v.high;
        }
        transpose_words(low);
        transpose_words(high);
        auto* at = reinterpret_cast<float*>(panel + k * kStride + c);
        for (int64_t i = 0; i < 8 && k + i < d; ++i) _mm256_store_ps(at + i * kStride, low[i]);
        for (int64_t i = 8; i < 16 && k + i < d; ++i) _mm256_store_ps(at + i * kStride, high[i - 8]);
      }
    }
  });
}

#endif

void ESPALIER_LEVEL::panel_dots(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words,
                                const uint32_t* panel, int64_t count, bool has_pairs, bool is_first, float* out) {
#ifdef __AVX512BF16__
  if (has_pairs) return all_columns<true>(rows, num_rows, word, num_words, panel, count, is_first, out);
#else
  static_cast<void>(has_pairs);
#endif
  all_columns<false>(rows, num_rows, word, num_words, panel, count, is_first, out);
}

}  // namespace espalier::kernels
