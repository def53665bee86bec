// SPDX-License-Identifier: Apache-2.0
// Not the library's product: in bfloat16 and float16 that rounds the result to the input's dtype.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/ops/pairwise_cosine/pairwise_cosine.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"

namespace espalier::kernels {

void pairwise_cosine_plain(const Rows& x, const Rows& y, float* out) {
  const int64_t d = x.features.d;
  for (int64_t i = 0; i < x.n; ++i) {
    for (int64_t j = 0; j < y.n; ++j) {
      float dot = 0.0F, x_square = 0.0F, y_square = 0.0F;
      for (int64_t k = 0; k < d; ++k) {
        const float a = load_element(x.features.data, i * x.features.stride + k, x.features.type);
        const float b = load_element(y.features.data, j * y.features.stride + k, y.features.type);
        dot += a * b;
        x_square += a * a;
        y_square += b * b;
      }
      const float x_norm = std::sqrt(x_square), y_norm = std::sqrt(y_square);
      const bool is_short = x_norm < kSmallestNorm || y_norm < kSmallestNorm;
      out[i * y.n + j] = is_short ? 0.0F : std::clamp(dot / x_norm / y_norm, -1.0F, 1.0F);
    }
  }
}

namespace {

constexpr int64_t kColumns = DotPanel::kColumns;
constexpr int64_t kTileRows = 64;
constexpr int64_t kWorthAThread = int64_t{1} << 18;  // multiplications

const void* row_of(const Rows& rows, int64_t i) {
  return static_cast<const char*>(rows.features.data) + i * rows.features.stride * element_size(rows.features.type);
}

std::vector<float> inverse_norms(const Rows& rows, CpuLevel level) {
  std::vector<float> inverse(static_cast<size_t>(rows.n));
  const int64_t rows_per_thread = std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(rows.features.d, 1));
  at::parallel_for(0, rows.n, rows_per_thread, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      inverse[i] = inverse_norm(row_of(rows, i), rows.features.type, rows.features.d, level);
  });
  return inverse;
}

}  // namespace

void pairwise_cosine_panels(const Rows& x, const Rows& y, CpuLevel level, float* out) {
  const std::vector<float> x_inverse = inverse_norms(x, level), y_inverse = inverse_norms(y, level);
  const int64_t num_panels = (y.n + kColumns - 1) / kColumns, tiles_a_panel = (x.n + kTileRows - 1) / kTileRows;
  const int64_t work_a_tile = std::max<int64_t>(kTileRows * kColumns * x.features.d, 1);
  const int64_t tiles_per_thread = std::max<int64_t>(1, kWorthAThread / work_a_tile);
  // Tiles of one panel lie behind each other, so a thread packs few panels.
  at::parallel_for(0, num_panels * tiles_a_panel, tiles_per_thread, [&](int64_t first, int64_t last) {
    DotPanel panel(x.features.d, x.features.type, level);
    const void* pointers[std::max(kTileRows, kColumns)];
    float dots[kTileRows * kColumns];
    int64_t packed = -1;
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t column = tile / tiles_a_panel * kColumns, row = tile % tiles_a_panel * kTileRows;
      const int64_t num_columns = std::min(kColumns, y.n - column), num_rows = std::min(kTileRows, x.n - row);
      if (packed != column) {
        for (int64_t c = 0; c < num_columns; ++c) pointers[c] = row_of(y, column + c);
        panel.pack(pointers, num_columns);
        packed = column;
      }
      for (int64_t r = 0; r < num_rows; ++r) pointers[r] = row_of(x, row + r);
      panel.dots(pointers, num_rows, dots);
      for (int64_t r = 0; r < num_rows; ++r)
        for (int64_t c = 0; c < num_columns; ++c) {
          const float a = x_inverse[row + r], b = y_inverse[column + c];
          const bool is_short = a == 0.0F || b == 0.0F;
          out[(row + r) * y.n + column + c] = is_short ? 0.0F : std::clamp(dots[r * kColumns + c] * a * b, -1.0F, 1.0F);
        }
    }
  });
}

}  // namespace espalier::kernels

namespace espalier::ops {
namespace {

kernels::Rows rows_of(const Tensor& t) {
  return {{t.const_data_ptr(), t.stride(0), t.size(1), kernels::element_type(t, "pairwise_cosine")}, t.size(0)};
}

Tensor pairwise_cosine_cpu(const Tensor& x_in, const Tensor& y_in) {
  kernels::check_pairwise_cosine(x_in, y_in);
  const Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous(), y = y_in.stride(1) == 1 ? y_in : y_in.contiguous();
  const kernels::Rows rows = rows_of(x), others = rows_of(y);
  Tensor out = at::empty({x.size(0), y.size(0)}, x.options().dtype(at::kFloat));
  kernels::note_kernel("pairwise_cosine", kernels::panel_kernel_name(kernels::cpu_level(), rows.features.type));
  if (out.numel() > 0)
    kernels::pairwise_cosine_panels(rows, others, kernels::cpu_level(), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("pairwise_cosine", pairwise_cosine_cpu);
}

}  // namespace espalier::ops
