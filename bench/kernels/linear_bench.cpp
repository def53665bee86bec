// SPDX-License-Identifier: Apache-2.0
// The linear layers of a 7B decoder, of weights in the dtype and in int8: few rows read the weight once (decoding),
// many are a product of matrices. Beside them the library's product; for int8 on the weight widened at each call, since
// that is what reading half the bytes is up against.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>

#include <functional>

#include "bench/kernels/op_timing.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;
namespace ops = espalier::ops;

struct Case {
  int64_t rows, in, out;
};

std::string name(const Case& c) {
  return std::to_string(c.rows) + (c.rows == 1 ? " row, " : " rows, ") + std::to_string(c.in) + " to " +
         std::to_string(c.out);
}

void report(OpBench& bench, const char* op, at::ScalarType dtype, const Case& c, double weight_bytes,
            const std::function<Tensor()>& ours, const std::function<Tensor()>& library) {
  const Tensor expected = library().to(at::kFloat);
  const double error = ((ours().to(at::kFloat) - expected).abs().max() / expected.abs().max()).item<double>();
  espalier::bench::Work work;
  if (c.rows <= 8) {
    work.bytes = weight_bytes;
    work.only_reads = true;
  } else {
    work.flops = 2.0 * static_cast<double>(c.rows) * static_cast<double>(c.in) * static_cast<double>(c.out);
  }
  bench.report(op, {name(c), dtype, work, error, dtype == at::kFloat ? 1e-4 : 0.02}, [&] { ours(); },
               {{"library", [&] { library(); }}});
}

void plain(OpBench& bench, at::ScalarType dtype, const Case& c) {
  const Tensor x = bench.randn({c.rows, c.in}, dtype), weight = bench.randn({c.out, c.in}, dtype);
  report(
      bench, "linear", dtype, c, static_cast<double>(weight.nbytes()), [&] { return ops::linear(x, weight); },
      [&] { return at::linear(x, weight); });
}

void int8(OpBench& bench, at::ScalarType dtype, const Case& c) {
  const auto options = at::TensorOptions().device(bench.device());
  const Tensor x = bench.randn({c.rows, c.in}, dtype);
  const Tensor weight = at::randint(-127, 128, {c.out, c.in}, options.dtype(at::kChar));
  const Tensor scale = at::rand({c.out}, options) * 1e-3 + 1e-3;
  report(
      bench, "linear_int8", dtype, c, static_cast<double>(weight.nbytes()),
      [&] { return ops::linear_int8(x, weight, scale); },
      [&] { return at::linear(x, (weight.to(at::kFloat) * scale.unsqueeze(1)).to(dtype)); });
}

}  // namespace

int main(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  const auto cases = {Case{1, 4096, 4096}, Case{1, 4096, 11008}, Case{1, 11008, 4096}, Case{8, 4096, 11008}};
  if (bench.wants("linear")) {
    for (const Case& c : cases) plain(bench, at::kBFloat16, c);
    for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) plain(bench, dtype, {1, 4096, 11008});
    plain(bench, at::kBFloat16, {2880, 4096, 4096});
  }
  if (bench.wants("linear_int8")) {
    for (const Case& c : cases) int8(bench, at::kBFloat16, c);
    for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) int8(bench, dtype, {1, 4096, 11008});
    int8(bench, at::kBFloat16, {2880, 4096, 4096});
  }
  return bench.status();
}
