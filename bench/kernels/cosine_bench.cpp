// SPDX-License-Identifier: Apache-2.0
// cosine_score (rows against a few directions, read once) and pairwise_cosine (a product of matrices), beside the same
// formula in torch operators.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/matmul.h>

#include "bench/kernels/op_timing.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;
namespace ops = espalier::ops;

Tensor unit_rows(const Tensor& x) {
  const Tensor wide = x.to(at::kFloat);
  return wide / wide.norm(2, -1, true);
}

void score(OpBench& bench, at::ScalarType dtype, int64_t n, int64_t d, int64_t num_directions, bool gathers) {
  const Tensor x = bench.randn({n, d}, dtype), direction = bench.randn({num_directions, d}, dtype);
  ops::OptionalTensor index;
  if (gathers) index = bench.range(0, n, 2);
  const auto op = [&] { return ops::cosine_score(x, direction, index); };
  const auto formula = [&] {
    return at::matmul(unit_rows(direction), unit_rows(gathers ? x.index_select(0, *index) : x).t());
  };
  const double error = (op() - formula()).abs().max().item<double>();
  const double bytes =
      static_cast<double>((gathers ? index->size(0) : n) * d) * static_cast<double>(at::elementSize(dtype));
  const std::string shape = std::to_string(n) + (gathers ? " rows, every other, of " : " rows of ") +
                            std::to_string(d) + ", " + std::to_string(num_directions) +
                            (num_directions == 1 ? " direction" : " directions");
  bench.report("cosine_score", {shape, dtype, {bytes, 0, true}, error, 1e-3}, op, {{"torch", formula}});
}

void pairwise(OpBench& bench, at::ScalarType dtype, int64_t n, int64_t m, int64_t d) {
  const Tensor x = bench.randn({n, d}, dtype), y = bench.randn({m, d}, dtype);
  const auto op = [&] { return ops::pairwise_cosine(x, y); };
  const auto formula = [&] { return at::matmul(unit_rows(x), unit_rows(y).t()); };
  const double error = (op() - formula()).abs().max().item<double>();
  const std::string shape = std::to_string(n) + " rows with " + std::to_string(m) + " of " + std::to_string(d);
  const double flops = 2.0 * static_cast<double>(n * m * d);
  bench.report("pairwise_cosine", {shape, dtype, {0, flops}, error, 1e-3}, op, {{"torch", formula}});
}

}  // namespace

int main(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  if (bench.wants("cosine_score")) {
    for (const int64_t tokens : {576, 2880, 11520}) score(bench, at::kBFloat16, tokens, 4096, 1, false);
    for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) score(bench, dtype, 2880, 4096, 1, false);
    score(bench, at::kBFloat16, 2880, 4096, 1, true);
    score(bench, at::kBFloat16, 2880, 4096, 5, false);
  }
  if (bench.wants("pairwise_cosine")) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kHalf}) pairwise(bench, dtype, 576, 576, 4096);
    pairwise(bench, at::kBFloat16, 2880, 2880, 4096);
    pairwise(bench, at::kBFloat16, 2880, 64, 4096);
    if (bench.is_cuda()) pairwise(bench, at::kBFloat16, 11520, 11520, 4096);
  }
  return bench.status();
}
