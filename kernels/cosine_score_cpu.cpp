// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <optional>

#include "kernels/cosine_score.h"
#include "kernels/cosine_score_arguments.h"

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
  kernels::cosine_score_plain(x.const_data_ptr(), x.stride(0), kernels::element_type(x, "cosine_score"),
                              direction.const_data_ptr<float>(),
                              index.defined() ? index.const_data_ptr<int64_t>() : nullptr, count, direction.size(0),
                              x.size(1), out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(espalier, CPU, m) {
  m.impl("cosine_score", cosine_score_cpu);
}

}  // namespace espalier::ops
