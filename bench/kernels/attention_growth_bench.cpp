// SPDX-License-Identifier: Apache-2.0
// attention_growth as CATP uses it (one row, both layers' keys and the hidden states of all image tokens): bytes read,
// GB/s, beside the same formula as composed ATen operators. Medians; results are compared first. Arguments: [seconds a
// row] [threads].
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "bench/kernels/median_time.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
namespace ops = espalier::ops;

double seconds_per_row = 1.0;

struct Layer {
  Tensor query, key, lse;
};

Tensor head_mean(const Layer& layer, const Tensor& rows, const Tensor& columns, double scale) {
  const Tensor q = layer.query.index_select(0, rows).transpose(0, 1);
  const Tensor scores = at::matmul(q, layer.key.index_select(0, columns).permute({1, 2, 0})).to(at::kFloat) * scale;
  return (scores - layer.lse.index_select(1, rows).unsqueeze(-1)).exp().mean(0).mean(0);
}

void report(at::ScalarType dtype, int64_t h, int64_t d, int64_t num_columns, bool has_direction) {
  const int64_t n = num_columns + 1, width = h * d;
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  const auto layer = [&] {
    return Layer{at::randn({n, h, d}).to(dtype), at::randn({n, h, d}).to(dtype), at::full({h, n}, 8.0F)};
  };
  const Layer lower = layer(), upper = layer();
  const Tensor hidden = at::randn({n, width}).to(dtype), direction = at::randn({1, width}).to(dtype);
  const Tensor columns = at::arange(num_columns), rows = at::arange(num_columns, n);
  const Tensor row_begin = at::tensor({int64_t{0}, int64_t{1}}), column_begin = at::tensor({int64_t{0}, num_columns});
  ops::OptionalTensor hidden_states, towards;
  if (has_direction) {
    hidden_states = hidden;
    towards = direction;
  }
  const auto op = [&] {
    return ops::attention_growth(lower.query, lower.key, lower.lse, upper.query, upper.key, upper.lse, rows, row_begin,
                                 columns, column_begin, scale, false, 0, {}, hidden_states, towards, 0.6);
  };
  const auto plain = [&] {
    Tensor out = (head_mean(upper, rows, columns, scale) - head_mean(lower, rows, columns, scale)).clamp_min(0);
    if (!has_direction) return out;
    const Tensor x = hidden.index_select(0, columns).to(at::kFloat), v = direction.view({width}).to(at::kFloat);
    return out + 0.6 * at::matmul(x, v) / (x.norm(2, -1) * v.norm(2, -1));
  };
  const double error = (op() - plain()).abs().max().item<float>();
  const double seconds = espalier::bench::median_seconds(op, seconds_per_row);
  const double other = espalier::bench::median_seconds(plain, seconds_per_row);
  const double bytes = static_cast<double>((has_direction ? 3 : 2) * num_columns * width * c10::elementSize(dtype));
  std::printf("%-9s h %2ld d %3ld columns %5ld%s %9.1f us %6.1f GB/s   ATen %9.1f us (%.1f x), apart by %.1e\n",
              c10::toString(dtype), h, d, num_columns, has_direction ? " + cosine" : "         ", seconds * 1e6,
              bytes / seconds * 1e-9, other * 1e6, other / seconds, error);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  const at::NoGradGuard no_grad;
  std::printf("%d threads\n", at::get_num_threads());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const bool has_direction : {false, true}) {
      report(dtype, 32, 128, 1408, has_direction);
      report(dtype, 20, 64, 1408, has_direction);
      report(dtype, 32, 128, 10000, has_direction);
    }
  }
}
