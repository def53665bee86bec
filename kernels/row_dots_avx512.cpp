// SPDX-License-Identifier: Apache-2.0
#include "kernels/row_dots_avx512.h"

// gcc 12 warns about the "undefined" operands inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace espalier::kernels {

namespace {

constexpr int64_t kStride = 48;  // DotPanel::kColumns: three vectors

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

// Transposes 16 x 16 words in place.
void transpose(__m512i v[16]) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    v[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    v[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  // v[4 i + j] now holds words j, 4 + j, 8 + j, 12 + j of rows 4 i .. 4 i + 3, a 128-bit lane each.
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(v[j], v[4 + j], 0x88), b = _mm512_shuffle_i32x4(v[j], v[4 + j], 0xdd);
    const __m512i c = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0x88),
                  e = _mm512_shuffle_i32x4(v[8 + j], v[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, c, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(b, e, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, c, 0xdd);
    t[12 + j] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}

template <bool kPairs>
__m512 multiply_add(__m512 sum, __m512i a, __m512i b) {
  if constexpr (kPairs) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  } else {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
}

// kRows rows times 16 · kVectors columns, the sums in registers.
template <int kRows, int kVectors, bool kPairs>
void block(const uint32_t* const* rows, int64_t word, int64_t num_words, const uint32_t* panel, bool is_first,
           float* out) {
  __m512 sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  const uint32_t* row[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) row[r] = rows[r] + word;
  for (int64_t k = 0; k < num_words; ++k) {
    __m512i column[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) column[v] = _mm512_load_si512(panel + (word + k) * kStride + 16 * v);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(row[r][k]));
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sum[r][v] = multiply_add<kPairs>(sum[r][v], value, column[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      float* at = out + r * kStride + 16 * v;
      _mm512_storeu_ps(at, is_first ? sum[r][v] : _mm512_add_ps(_mm512_loadu_ps(at), sum[r][v]));
    }
  }
}

template <int kVectors, bool kPairs>
void all_rows(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words, const uint32_t* panel,
              bool is_first, float* out) {
  int64_t r = 0;
  for (; r + 8 <= num_rows; r += 8)
    block<8, kVectors, kPairs>(rows + r, word, num_words, panel, is_first, out + r * kStride);
  for (; r + 4 <= num_rows; r += 4)
    block<4, kVectors, kPairs>(rows + r, word, num_words, panel, is_first, out + r * kStride);
  for (; r + 2 <= num_rows; r += 2)
    block<2, kVectors, kPairs>(rows + r, word, num_words, panel, is_first, out + r * kStride);
  for (; r < num_rows; ++r) block<1, kVectors, kPairs>(rows + r, word, num_words, panel, is_first, out + r * kStride);
}

template <bool kPairs>
void all_columns(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words, const uint32_t* panel,
                 int64_t count, bool is_first, float* out) {
  if (count > 32) return all_rows<3, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
  if (count > 16) return all_rows<2, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
  all_rows<1, kPairs>(rows, num_rows, word, num_words, panel, is_first, out);
}

}  // namespace

void convert_row_avx512(const void* row, int64_t d, ElementType type, bool has_pairs, uint32_t* words) {
  const int64_t num_words = has_pairs ? (d + 1) / 2 : d;
  for (int64_t k = 0; k < num_words; k += 16) {
    const int64_t left = num_words - k;
    _mm512_mask_storeu_epi32(words + k, left >= 16 ? 0xffff : (1U << left) - 1, load_words(row, k, d, type, has_pairs));
  }
}

void pack_panel_avx512(const void* const* rows, int64_t count, int64_t d, ElementType type, bool has_pairs,
                       uint32_t* panel) {
  const int64_t num_words = has_pairs ? (d + 1) / 2 : d;
  for (int64_t c = 0; c < count; c += 16) {
    for (int64_t k = 0; k < num_words; k += 16) {
      __m512i v[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        v[i] = c + i < count ? load_words(rows[c + i], k, d, type, has_pairs) : _mm512_setzero_si512();
      transpose(v);
      const int64_t left = num_words - k;
      for (int64_t i = 0; i < (left < 16 ? left : 16); ++i) _mm512_store_si512(panel + (k + i) * kStride + c, v[i]);
    }
  }
}

void panel_dots_avx512(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words,
                       const uint32_t* panel, int64_t count, bool has_pairs, bool is_first, float* out) {
  if (has_pairs) return all_columns<true>(rows, num_rows, word, num_words, panel, count, is_first, out);
  all_columns<false>(rows, num_rows, word, num_words, panel, count, is_first, out);
}

}  // namespace espalier::kernels
