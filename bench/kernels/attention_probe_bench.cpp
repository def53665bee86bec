// SPDX-License-Identifier: Apache-2.0
// attention_probe: the last row over the image tokens (keys read once) and a text's rows by all of them (a product of
// matrices), beside the same formula in torch operators.
#include <ATen/core/grad_mode.h>

#include "bench/kernels/op_timing.h"
#include "bench/kernels/probe_inputs.h"
#include "espalier/ops.h"

namespace {

using espalier::bench::OpBench;
using espalier::bench::ProbeInputs;
namespace ops = espalier::ops;

void report(OpBench& bench, at::ScalarType dtype, const ProbeInputs& in, int64_t kv_heads) {
  const auto layer = in.layer(bench, kv_heads, dtype);
  const auto op = [&] {
    return ops::attention_probe({.layer = {layer.query, layer.key, layer.lse},
                                 .rows = in.rows,
                                 .row_begin = in.row_begin,
                                 .columns = in.columns,
                                 .column_begin = in.column_begin,
                                 .scale = in.scale});
  };
  const auto formula = [&] { return in.head_means(layer); };
  // The torch formula rounds the scores to the dtype: its own error, relative.
  const double error = ((op() - formula()).abs() / formula()).max().item<double>();
  espalier::bench::Work work;
  const auto columns = static_cast<double>(in.batch * in.tokens);
  if (in.num_rows <= 8) {
    work.bytes = columns * static_cast<double>(kv_heads * in.head_dim) * static_cast<double>(at::elementSize(dtype));
    work.only_reads = true;
  } else {
    work.flops = 2.0 * columns * static_cast<double>(in.num_rows * in.heads * in.head_dim);
  }
  const std::string shape = std::to_string(in.num_rows) + (in.num_rows == 1 ? " row, " : " rows, ") +
                            std::to_string(in.batch) + " x " + std::to_string(in.tokens) + " tokens, " +
                            std::to_string(in.heads) + "/" + std::to_string(kv_heads) + " heads of " +
                            std::to_string(in.head_dim);
  bench.report("attention_probe", {shape, dtype, work, error, dtype == at::kFloat ? 1e-3 : 0.2}, op,
               {{"torch", formula}});
}

}  // namespace

int main(int argc, char** argv) {
  using namespace espalier::bench;
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  if (!bench.wants("attention_probe")) return 0;
  for (const AttentionShape& s : attention_shapes())
    report(bench, at::kBFloat16, {bench, kQueryHeads, kHeadDim, s.batch, s.tokens, 1}, s.kv_heads);
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf})
    report(bench, dtype, {bench, kQueryHeads, kHeadDim, 1, 2880, 1}, 32);
  report(bench, at::kBFloat16, {bench, 20, 64, 1, 2880, 8}, 20);
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kHalf})
    report(bench, dtype, {bench, kQueryHeads, kHeadDim, 1, 576, 600}, 32);
  report(bench, at::kBFloat16, {bench, 12, 64, 1, 576, 600}, 12);
  return bench.status();
}
