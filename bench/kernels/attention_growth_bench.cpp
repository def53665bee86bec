// SPDX-License-Identifier: Apache-2.0
// attention_growth as CATP uses it (one row per sequence, both layers' keys and the hidden states of all image tokens),
// beside the same formula in torch operators.
#include <ATen/core/grad_mode.h>

#include "bench/kernels/op_timing.h"
#include "bench/kernels/probe_inputs.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;
using espalier::bench::ProbeInputs;
namespace ops = espalier::ops;

constexpr double kCosineWeight = 0.6;

// Rows of the image tokens against their sequence's direction.
Tensor cosines(const ProbeInputs& in, const Tensor& hidden, const Tensor& direction) {
  const Tensor x = hidden.index_select(0, in.columns).to(at::kFloat).view({in.batch, in.tokens, -1});
  const Tensor v = direction.to(at::kFloat).unsqueeze(-1);
  return (at::matmul(x, v).squeeze(-1) / (x.norm(2, -1) * v.norm(2, 1))).flatten();
}

void report(OpBench& bench, at::ScalarType dtype, const ProbeInputs& in, int64_t kv_heads, bool has_direction) {
  const int64_t width = in.heads * in.head_dim;
  const auto lower = in.layer(bench, kv_heads, dtype), upper = in.layer(bench, kv_heads, dtype);
  ops::OptionalTensor hidden, direction;
  if (has_direction) {
    hidden = bench.randn({in.batch * in.length(), width}, dtype);
    direction = bench.randn({in.batch, width}, dtype);
  }
  const auto op = [&] {
    return ops::attention_growth({.lower = {lower.query, lower.key, lower.lse},
                                  .upper = {upper.query, upper.key, upper.lse},
                                  .rows = in.rows,
                                  .row_begin = in.row_begin,
                                  .columns = in.columns,
                                  .column_begin = in.column_begin,
                                  .scale = in.scale,
                                  .hidden = hidden,
                                  .direction = direction,
                                  .cosine_weight = kCosineWeight});
  };
  const auto formula = [&] {
    const Tensor growth = (in.head_means(upper) - in.head_means(lower)).clamp_min(0);
    return has_direction ? growth + kCosineWeight * cosines(in, *hidden, *direction) : growth;
  };
  const double error = (op() - formula()).abs().max().item<double>();
  const int64_t read = 2 * kv_heads * in.head_dim + (has_direction ? width : 0);
  const double bytes = static_cast<double>(in.batch * in.tokens * read) * static_cast<double>(at::elementSize(dtype));
  const std::string shape = std::to_string(in.batch) + " x " + std::to_string(in.tokens) + " tokens, " +
                            std::to_string(in.heads) + "/" + std::to_string(kv_heads) + " heads of " +
                            std::to_string(in.head_dim) + (has_direction ? " + cosine" : "");
  bench.report("attention_growth", {shape, dtype, {bytes, 0, true}, error, 1e-3}, op, {{"torch", formula}});
}

}  // namespace

int main(int argc, char** argv) {
  using namespace espalier::bench;
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  if (!bench.wants("attention_growth")) return 0;
  for (const AttentionShape& s : attention_shapes())
    report(bench, at::kBFloat16, {bench, kQueryHeads, kHeadDim, s.batch, s.tokens, 1}, s.kv_heads, true);
  report(bench, at::kBFloat16, {bench, kQueryHeads, kHeadDim, 1, 2880, 1}, 32, false);
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf})
    report(bench, dtype, {bench, kQueryHeads, kHeadDim, 1, 2880, 1}, 32, true);
  report(bench, at::kBFloat16, {bench, 20, 64, 1, 1408, 1}, 20, true);
  return bench.status();
}
