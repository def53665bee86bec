// SPDX-License-Identifier: Apache-2.0
// Attention beside the library's own: for prefill the operations that causality leaves (2 products · 2 · head_dim for
// each visible pair) against the matrix rate, for decoding the bytes of the cache against the reading rate.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cmath>

#include "bench/kernels/op_timing.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;

struct Case {
  int64_t batch, queries, keys, heads, kv_heads, d;
  bool is_causal = true;
};

std::string name(const Case& c) {
  const std::string work = c.queries == 1 ? "decode " : c.is_causal ? "causal " : "full ";
  return work + std::to_string(c.batch) + " x " + std::to_string(c.keys) + " tokens, " + std::to_string(c.heads) + "/" +
         std::to_string(c.kv_heads) + " heads of " + std::to_string(c.d);
}

double visible_pairs(const Case& c) {
  const auto queries = static_cast<double>(c.queries), keys = static_cast<double>(c.keys);
  return c.is_causal ? 0.5 * queries * (2 * keys - queries + 1) : queries * keys;
}

// Decoding is also measured through attention_decode, which reads lengths where the keys are.
void report(OpBench& bench, at::ScalarType dtype, const Case& c, bool reads_lengths = false) {
  const Tensor q = bench.randn({c.batch * c.queries, c.heads, c.d}, dtype);
  const Tensor k = bench.randn({c.batch * c.keys, c.kv_heads, c.d}, dtype);
  const Tensor v = bench.randn({c.batch * c.keys, c.kv_heads, c.d}, dtype);
  const Tensor query_begin = at::arange(0, c.batch * c.queries + 1, c.queries, at::kLong);
  const Tensor key_begin = at::arange(0, c.batch * c.keys, c.keys, at::kLong);
  const Tensor key_length = at::full({c.batch}, c.keys, at::kLong);
  const double scale = 1 / std::sqrt(static_cast<double>(c.d));
  const Tensor begin_there = key_begin.to(bench.device()), length_there = key_length.to(bench.device());
  const auto op = [&] {
    if (reads_lengths)
      return std::get<0>(espalier::ops::attention_decode({q, k, v, begin_there, length_there, c.keys, scale}));
    return std::get<0>(espalier::ops::attention({q, k, v, query_begin, key_begin, key_length, scale, c.is_causal}));
  };
  // The library gets as many KV heads as query heads; its causality is aligned at the start, so decoding runs without.
  const auto by_head = [&](const Tensor& t) { return t.view({c.batch, -1, t.size(1), c.d}).transpose(1, 2); };
  const Tensor k_all = by_head(k).repeat_interleave(c.heads / c.kv_heads, 1),
               v_all = by_head(v).repeat_interleave(c.heads / c.kv_heads, 1);
  const bool library_is_causal = c.is_causal && c.queries == c.keys;
  const auto library = [&] {
    return at::scaled_dot_product_attention(by_head(q), k_all, v_all, {}, 0.0, library_is_causal, scale);
  };
  const double error = (op() - library().transpose(1, 2).flatten(0, 1)).abs().max().item<double>();
  espalier::bench::Work work;
  if (c.queries == 1) {
    work.bytes = 2.0 * static_cast<double>(k.numel()) * static_cast<double>(at::elementSize(dtype));
    work.only_reads = true;
  } else {
    work.flops = 4.0 * static_cast<double>(c.d * c.heads * c.batch) * visible_pairs(c);
  }
  bench.report(reads_lengths ? "attention_decode" : "attention",
               {name(c), dtype, work, error, dtype == at::kFloat ? 5e-3 : 0.05}, op, {{"library", library}});
}

}  // namespace

int main(int argc, char** argv) {
  using namespace espalier::bench;
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  if (!bench.wants("attention_decode")) return 0;
  for (const AttentionShape& s : attention_shapes()) {
    const bool is_long = s.tokens * s.batch > 4 * 2880;  // seconds a run for the library on a CPU
    if (bench.is_cuda() || !is_long)
      report(bench, at::kBFloat16, {s.batch, s.tokens, s.tokens, kQueryHeads, s.kv_heads, kHeadDim});
    for (const bool reads_lengths : {false, true})
      report(bench, at::kBFloat16, {s.batch, 1, s.tokens, kQueryHeads, s.kv_heads, kHeadDim}, reads_lengths);
  }
  for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat, at::kHalf}) {
    report(bench, dtype, {1, 2958, 2958, 20, 20, 64});
    report(bench, dtype, {1, 700, 700, 20, 20, 64});
    report(bench, dtype, {1, 577, 577, 16, 16, 64, false});
    report(bench, dtype, {1, 1, 2958, 20, 20, 64});
    report(bench, dtype, {1, 1, 16384, 20, 20, 64});
  }
  return bench.status();
}
