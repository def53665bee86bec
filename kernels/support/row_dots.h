// SPDX-License-Identifier: Apache-2.0
// Dot products of rows in float32 accumulation on the CPU. Not a general matrix product: rows come as pointers (so that
// gathered tokens need no copy), and every product is summed in one order wherever it stands, so that equal rows give
// bitwise equal products.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/support/cpu_level.h"
#include "kernels/support/element_type.h"

namespace espalier::kernels {

// Element i of an array of this type, as float32.
float load_element(const void* data, int64_t i, ElementType type);

inline int64_t element_size(ElementType type) {
  return type == ElementType::kFloat32 ? 4 : 2;
}

struct FeatureRows {
  const void* data;  // [m, d]
  int64_t stride;    // elements from row to row
  int64_t d;
  ElementType type;
};

// Up to 48 rows laid side by side, element by element, for products with any number of other rows. Holds its own
// memory: one per thread.
class DotPanel {
 public:
  static constexpr int64_t kColumns = 48;

  DotPanel(int64_t d, ElementType type, CpuLevel level = cpu_level());

  // rows: `count` <= kColumns pointers to d elements each.
  void pack(const void* const* rows, int64_t count);

  // out[r, c] = rows[r] · packed row c; out [num_rows, kColumns], columns from `count` on are left undefined. Matrix
  // registers, where the level has them, pay from kTileRows rows on; they sum in another order, so whoever takes them
  // for some rows takes them for all that are to be compared.
  static constexpr int64_t kTileRows = 16;
  void dots(const void* const* rows, int64_t num_rows, float* out, bool takes_tiles = true);

 private:
  // The rows as arrays of 32-bit words that the products read: converted into staging_ where the type is not one of
  // them.
  const uint32_t* const* stage(const void* const* rows, int64_t num_rows);

  struct Free {
    void operator()(void* memory) const;
  };
  using Words = std::unique_ptr<uint32_t[], Free>;
  static Words allocate(int64_t words);

  static constexpr int64_t kStagedRows = 16;

  int64_t d_;
  ElementType type_;
  CpuLevel level_;
  bool has_pairs_;  // a word holds two bfloat16; else one float
  int64_t words_;   // a row's length in words
  int64_t count_ = 0;
  Words panel_;    // [words, kColumns], zeros up to a multiple of 16 words
  Words staging_;  // [kStagedRows, words]
  const uint32_t* staged_[kStagedRows];
};

}  // namespace espalier::kernels
