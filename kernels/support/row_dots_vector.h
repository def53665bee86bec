// SPDX-License-Identifier: Apache-2.0
// The vector and matrix part of DotPanel (row_dots.h). Includes no standard library: a unit with AVX flags must not
// emit inline functions that others use. A word is a float or (has_pairs, from AVX-512 on) two bfloat16.
#pragma once

#include <cstdint>

#include "kernels/support/element_type.h"

namespace espalier::kernels {

// words: [d], or [(d + 1) / 2] pairs with a zero behind an odd end.
using ConvertRowLoop = void(const void* row, int64_t d, ElementType type, bool has_pairs, uint32_t* words);

// panel [words of a row, 48], 64-byte aligned; `count` <= 48 rows, zeros up to a multiple of 16.
using PackPanelLoop = void(const void* const* rows, int64_t count, int64_t d, ElementType type, bool has_pairs,
                           uint32_t* panel);

// out [num_rows, 48]: products over num_words words from `word` on, up to 256; is_first: written, else added. That of
// amx takes pairs alone and reads the panel up to a multiple of 16 words, which hold zeros.
using PanelDotsLoop = void(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words,
                           const uint32_t* panel, int64_t count, bool has_pairs, bool is_first, float* out);

namespace avx2 {
ConvertRowLoop convert_row;
PackPanelLoop pack_panel;
PanelDotsLoop panel_dots;
}  // namespace avx2
namespace avx512 {
ConvertRowLoop convert_row;
PackPanelLoop pack_panel;
PanelDotsLoop panel_dots;
}  // namespace avx512
namespace amx {
PanelDotsLoop panel_dots;
}  // namespace amx

}  // namespace espalier::kernels
