// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/ops/cosine_score/cosine_score.h"
#include "kernels/ops/cosine_score/cosine_score_arguments.h"
#include "kernels/ops/cosine_score/cosine_score_vector.h"
#include "kernels/support/chosen_kernels.h"

namespace espalier::kernels {

void cosine_score_plain(const void* x, int64_t stride, ElementType type, const float* direction, const int64_t* index,
                        int64_t count, int64_t num_directions, int64_t d, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t row = (index == nullptr ? i : index[i]) * stride;
    for (int64_t v = 0; v < num_directions; ++v) {
      float dot = 0.0F, row_square = 0.0F, direction_square = 0.0F;
      for (int64_t k = 0; k < d; ++k) {
        const float a = load_element(x, row + k, type), b = direction[v * d + k];
        dot += a * b;
        row_square += a * a;
        direction_square += b * b;
      }
      const float row_norm = std::sqrt(row_square), direction_norm = std::sqrt(direction_square);
      out[v * count + i] =
          row_norm < kSmallestNorm || direction_norm < kSmallestNorm ? 0.0F : dot / row_norm / direction_norm;
    }
  }
}

namespace {

// One row against up to kCosineDirections directions, `d` apart.
void row_cosine_sums(const void* row, ElementType type, int64_t d, const float* direction, int64_t num_directions,
                     CpuLevel level, float* dots, float* square) {
  if (RowCosineLoop* vector = vector_form(level, avx2::row_cosine_sums, avx512::row_cosine_sums))
    return vector(row, type, d, direction, num_directions, dots, square);
  *square = 0.0F;
  std::fill(dots, dots + num_directions, 0.0F);
  for (int64_t k = 0; k < d; ++k) {
    const float value = load_element(row, k, type);
    *square += value * value;
    for (int64_t v = 0; v < num_directions; ++v) dots[v] += value * direction[v * d + k];
  }
}

float inverse_root(float square) {
  const float norm = std::sqrt(square);
  return norm < kSmallestNorm ? 0.0F : 1.0F / norm;
}

}  // namespace

float inverse_norm(const void* row, ElementType type, int64_t d, CpuLevel level) {
  float square;
  row_cosine_sums(row, type, d, nullptr, 0, level, nullptr, &square);
  return inverse_root(square);
}

CosineDirections::CosineDirections(const float* direction, int64_t num_directions, int64_t d, CpuLevel level)
    : direction_(direction), num_directions_(num_directions), d_(d), level_(level) {
  for (int64_t v = 0; v < num_directions; ++v) {
    inverse_norm_.push_back(inverse_norm(direction + v * d, ElementType::kFloat32, d, level));
  }
}

void CosineDirections::score(const void* x, int64_t stride, ElementType type, const int64_t* index, int64_t first,
                             int64_t last, float* out, int64_t out_stride) const {
  for (int64_t i = first; i < last; ++i) {
    const auto* row = static_cast<const char*>(x) + (index == nullptr ? i : index[i]) * stride * element_size(type);
    for (int64_t v = 0; v < num_directions_; v += kCosineDirections) {
      const int64_t count = std::min(kCosineDirections, num_directions_ - v);
      float dots[kCosineDirections], square;
      row_cosine_sums(row, type, d_, direction_ + v * d_, count, level_, dots, &square);
      const float norm = inverse_root(square);
      for (int64_t w = 0; w < count; ++w) out[(v + w) * out_stride + i] = dots[w] * norm * inverse_norm_[v + w];
    }
  }
}

}  // namespace espalier::kernels

namespace espalier::ops {

namespace {

at::Tensor cosine_score_cpu(const at::Tensor& x_in, const at::Tensor& direction_in,
                            const std::optional<at::Tensor>& index_in) {
  kernels::check_cosine_score(x_in, direction_in, index_in);
  const at::Tensor x = x_in.stride(1) == 1 ? x_in : x_in.contiguous();
  const at::Tensor direction = direction_in.to(at::kFloat).contiguous();
  at::Tensor index;
  if (index_in.has_value() && index_in->defined()) {
    kernels::check_rows_in_range("cosine_score", *index_in, x.size(0));
    index = index_in->contiguous();
  }
  const int64_t count = index.defined() ? index.size(0) : x.size(0);
  at::Tensor out = at::empty({direction.size(0), count}, x.options().dtype(at::kFloat));
  const auto type = kernels::element_type(x, "cosine_score");
  kernels::note_kernel("cosine_score", kernels::vector_kernel_name(kernels::cpu_level()));
  const kernels::CosineDirections directions(direction.const_data_ptr<float>(), direction.size(0), x.size(1),
                                             kernels::cpu_level());
  const int64_t* rows = index.defined() ? index.const_data_ptr<int64_t>() : nullptr;
  const void* data = x.const_data_ptr();
  float* scores = out.mutable_data_ptr<float>();
  constexpr int64_t kWorthAThread = int64_t{1} << 16;  // elements read
  const int64_t rows_per_thread =
      std::max<int64_t>(1, kWorthAThread / std::max<int64_t>(x.size(1) * direction.size(0), 1));
  at::parallel_for(0, count, rows_per_thread, [&](int64_t first, int64_t last) {
    directions.score(data, x.stride(0), type, rows, first, last, scores, count);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("cosine_score", cosine_score_cpu);
}

}  // namespace espalier::ops
