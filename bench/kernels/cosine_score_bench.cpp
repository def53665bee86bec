// SPDX-License-Identifier: Apache-2.0
// cosine_score of gathered rows: bytes read, GB/s, beside the same formula as composed ATen operators. Medians; results
// are compared first. Arguments: [seconds a row] [threads].
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>

#include <cstdio>
#include <cstdlib>

#include "bench/kernels/median_time.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
namespace ops = espalier::ops;

double seconds_per_row = 1.0;

void report(at::ScalarType dtype, int64_t n, int64_t d, int64_t num_directions, bool gathers) {
  const Tensor x = at::randn({n, d}).to(dtype), direction = at::randn({num_directions, d}).to(dtype),
               index = at::arange(0, n, 2);
  const ops::OptionalTensor chosen = gathers ? ops::OptionalTensor(index) : ops::OptionalTensor();
  const auto op = [&] { return ops::cosine_score(x, direction, chosen); };
  const auto plain = [&] {
    const Tensor rows = (gathers ? x.index_select(0, index) : x).to(at::kFloat), v = direction.to(at::kFloat);
    return at::matmul(v / v.norm(2, -1, true), (rows / rows.norm(2, -1, true)).t());
  };
  const double error = (op() - plain()).abs().max().item<float>();
  const double seconds = espalier::bench::median_seconds(op, seconds_per_row);
  const double other = espalier::bench::median_seconds(plain, seconds_per_row);
  const double bytes = static_cast<double>((gathers ? index.size(0) : n) * d * c10::elementSize(dtype));
  std::printf("%-9s n %5ld d %4ld directions %3ld%s %9.1f us %6.1f GB/s   ATen %9.1f us (%.1f x), apart by %.1e\n",
              c10::toString(dtype), n, d, num_directions, gathers ? " every other row" : "                ",
              seconds * 1e6, bytes / seconds * 1e-9, other * 1e6, other / seconds, error);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  const at::NoGradGuard no_grad;
  std::printf("%d threads\n", at::get_num_threads());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const bool gathers : {false, true}) report(dtype, 2880, 4096, 1, gathers);
    report(dtype, 20000, 4096, 1, false);
    report(dtype, 576, 1280, 1, false);
    report(dtype, 2880, 4096, 5, false);
    report(dtype, 576, 4096, 64, false);
  }
}
