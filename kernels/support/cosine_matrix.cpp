// SPDX-License-Identifier: Apache-2.0
// Norms are the roots of the products' own diagonal: a product with itself and one with an equal row are the same bits.
#include "kernels/support/cosine_matrix.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace espalier::kernels {

namespace {

constexpr int64_t kColumns = DotPanel::kColumns;

// Products of the columns from `first` on with the rows from `first` on, and the mirror image.
void fill_tile(const FeatureRows& features, int64_t begin, int64_t size, int64_t first, DotPanel& panel, float* out) {
  constexpr int64_t kRows = 64;
  const void* pointers[std::max(kRows, kColumns)];
  float dots[kRows * kColumns];
  const auto row = [&](int64_t i) {
    return static_cast<const char*>(features.data) + (begin + i) * features.stride * element_size(features.type);
  };
  const int64_t num_columns = std::min(kColumns, size - first);
  for (int64_t c = 0; c < num_columns; ++c) pointers[c] = row(first + c);
  panel.pack(pointers, num_columns);
  for (int64_t x = first; x < size; x += kRows) {
    const int64_t num_rows = std::min(kRows, size - x);
    for (int64_t r = 0; r < num_rows; ++r) pointers[r] = row(x + r);
    panel.dots(pointers, num_rows, dots);
    for (int64_t r = 0; r < num_rows; ++r)
      for (int64_t c = 0; c < num_columns; ++c)
        out[(x + r) * size + first + c] = out[(first + c) * size + x + r] = dots[r * kColumns + c];
  }
}

}  // namespace

void cosine_matrix(const FeatureRows& features, int64_t begin, int64_t size, CpuLevel level, float* out) {
  const int64_t num_tiles = (size + kColumns - 1) / kColumns;
  at::parallel_for(0, num_tiles, 1, [&](int64_t first, int64_t last) {
    DotPanel panel(features.d, features.type, level);
    // Long and short tiles in turn: any cut in equal counts is nearly one in equal work.
    for (int64_t i = first; i < last; ++i)
      fill_tile(features, begin, size, (i % 2 == 0 ? i / 2 : num_tiles - 1 - i / 2) * kColumns, panel, out);
  });
  std::vector<double> inverse_norm(size);
  for (int64_t i = 0; i < size; ++i) {
    const double norm = std::sqrt(static_cast<double>(out[i * size + i]));
    inverse_norm[i] = norm >= 1e-12 && std::isfinite(norm) ? 1.0 / norm : 0.0;
  }
  at::parallel_for(0, size, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < size; ++j) {
        float& value = out[i * size + j];
        const double scale = inverse_norm[i] * inverse_norm[j];  // this order: the matrix stays symmetric
        value = scale == 0.0 ? 0.0F : static_cast<float>(std::clamp(value * scale, -1.0, 1.0));
      }
  });
}

}  // namespace espalier::kernels
