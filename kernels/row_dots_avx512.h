// SPDX-License-Identifier: Apache-2.0
// The AVX-512 part of DotPanel (row_dots.h), called only where cpu_level() is kAvx512. Includes no standard library: a
// unit with AVX flags must not emit inline functions that others use. A word is a float or (has_pairs) two bfloat16.
#pragma once

#include <cstdint>

#include "kernels/element_type.h"

namespace espalier::kernels {

// words: [d], or [(d + 1) / 2] pairs with a zero behind an odd end.
void convert_row_avx512(const void* row, int64_t d, ElementType type, bool has_pairs, uint32_t* words);

// panel [words of a row, 48], 64-byte aligned; `count` <= 48 rows, zeros up to a multiple of 16.
void pack_panel_avx512(const void* const* rows, int64_t count, int64_t d, ElementType type, bool has_pairs,
                       uint32_t* panel);

// out [num_rows, 48]: products over num_words words from `word` on; is_first: written, else added.
void panel_dots_avx512(const uint32_t* const* rows, int64_t num_rows, int64_t word, int64_t num_words,
                       const uint32_t* panel, int64_t count, bool has_pairs, bool is_first, float* out);

}  // namespace espalier::kernels
