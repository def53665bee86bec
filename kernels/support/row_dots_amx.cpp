// SPDX-License-Identifier: Apache-2.0
// DotPanel's products of bf16 pairs on AMX.
#include "kernels/support/amx_tiles.h"
#include "kernels/support/row_dots_vector.h"

namespace espalier::kernels {

namespace {

constexpr int64_t kStride = 48;      // DotPanel::kColumns: three tiles
constexpr int64_t kMostWords = 256;  // of one call

}  // namespace

// Rows lie anywhere, so they are laid side by side first, zeros behind the last word. Whatever the number of rows and
// columns, a product is summed in one order.
void amx::panel_dots(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words,
                     const uint32_t* panel, int64_t count, bool, bool is_first, float* out) {
  alignas(64) uint32_t side_by_side[kTileRows * kMostWords];
  alignas(64) float sums[kTileRows * kStride];
  const int64_t steps = (num_words + kTilePairs - 1) / kTilePairs * kTilePairs;
  const TileSession session(num_rows < kTileRows ? num_rows : kTileRows);
  for (int64_t first = 0; first < num_rows; first += kTileRows) {
    const int64_t here = num_rows - first < kTileRows ? num_rows - first : kTileRows;
    if (first > 0 && here < kTileRows) TileSession::set_rows(here);
    for (int64_t r = 0; r < here; ++r) {
      const uint32_t* words = rows[first + r] + word;
      uint32_t* to = side_by_side + r * steps;
      int64_t k = 0;
      for (; k + 16 <= num_words; k += 16) _mm512_store_si512(to + k, _mm512_loadu_si512(words + k));
      if (k < steps)
        _mm512_store_si512(to + k,
                           _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1U << (num_words - k)) - 1), words + k));
    }
    float* at = out + first * kStride;
    float* to = is_first ? at : sums;
    multiply_tiles(side_by_side, steps * 4, panel + word * kStride, kStride * 4, steps, count, to, kStride * 4);
    if (is_first) continue;
    for (int64_t r = 0; r < here * kStride; r += kStride)
      for (int64_t c = r; c < r + count; c += 16)
        _mm512_storeu_ps(at + c, _mm512_add_ps(_mm512_loadu_ps(at + c), _mm512_load_ps(sums + c)));
  }
}

}  // namespace espalier::kernels
