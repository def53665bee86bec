// SPDX-License-Identifier: Apache-2.0
// attention_probe at LLaVA shapes: one row over the keys (bytes read, GB/s) and many rows by many columns (GFLOP/s),
// beside the same formula as composed ATen operators. Medians; results are compared first. Arguments: [seconds a row]
// [threads].
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

// Rows all lie behind the columns, so nothing is hidden.
Tensor composed(const Tensor& query, const Tensor& key, const Tensor& lse, const Tensor& rows, const Tensor& columns,
                double scale) {
  const int64_t repeat = query.size(1) / key.size(1);
  const Tensor q = query.index_select(0, rows).transpose(0, 1);
  Tensor k = key.index_select(0, columns).permute({1, 2, 0});
  if (repeat > 1) k = k.repeat_interleave(repeat, 0);
  const Tensor scores = at::matmul(q, k).to(at::kFloat) * scale;
  return (scores - lse.index_select(1, rows).unsqueeze(-1)).exp().mean(0).mean(0);
}

void report(at::ScalarType dtype, int64_t h, int64_t g, int64_t d, int64_t num_rows, int64_t num_columns) {
  const int64_t n = num_rows + num_columns;
  const double scale = 1.0 / std::sqrt(static_cast<double>(d));
  const Tensor query = at::randn({n, h, d}).to(dtype), key = at::randn({n, g, d}).to(dtype),
               lse = at::full({h, n}, 8.0F);
  const Tensor columns = at::arange(num_columns), rows = at::arange(num_columns, n);
  const Tensor row_begin = at::tensor({int64_t{0}, num_rows}), column_begin = at::tensor({int64_t{0}, num_columns});
  const auto op = [&] {
    return ops::attention_probe(query, key, lse, rows, row_begin, columns, column_begin, scale, true,
                                ops::HeadReduction::kMean, true);
  };
  const auto plain = [&] { return composed(query, key, lse, rows, columns, scale); };
  const double error = ((op() - plain()).abs() / plain()).max().item<float>();
  const double seconds = espalier::bench::median_seconds(op, seconds_per_row);
  const double other = espalier::bench::median_seconds(plain, seconds_per_row);
  const double bytes = static_cast<double>(num_columns * g * d * c10::elementSize(dtype));
  const double flop = 2.0 * static_cast<double>(num_rows * num_columns * h * d);
  std::printf(
      "%-9s h %2ld g %2ld d %3ld rows %4ld columns %4ld %9.1f us %6.1f GB/s %6.1f GFLOP/s   ATen %9.1f us (%.1f x), "
      "apart by %.1e\n",
      c10::toString(dtype), h, g, d, num_rows, num_columns, seconds * 1e6, bytes / seconds * 1e-9,
      flop / seconds * 1e-9, other * 1e6, other / seconds, error);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  const at::NoGradGuard no_grad;
  std::printf("%d threads\n", at::get_num_threads());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    report(dtype, 32, 32, 128, 1, 2880);
    report(dtype, 32, 8, 128, 1, 2880);
    report(dtype, 32, 32, 128, 1, 16384);
    report(dtype, 20, 20, 64, 8, 2880);
    report(dtype, 32, 32, 128, 600, 576);
    report(dtype, 12, 12, 64, 600, 576);
  }
}
