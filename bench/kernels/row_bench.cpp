// SPDX-License-Identifier: Apache-2.0
// The memory-bound ops (rms_norm, rope, silu_mul, merge_states, gather_rows, merge_tokens, compact_kv, topk_sorted)
// against copy bandwidth, beside the same work in torch operators.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/topk.h>

#include <functional>

#include "bench/kernels/op_timing.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;
namespace ops = espalier::ops;

using Result = std::function<Tensor()>;

// Bytes that must be read and written.
void report(OpBench& bench, const char* op, const std::string& shape, at::ScalarType dtype, double bytes,
            const Result& ours, const Result& torch) {
  if (!bench.wants(op)) return;
  // Both round a few times to the dtype; counted against the largest value.
  const Tensor expected = torch().to(at::kDouble);
  const double error = ((ours() - expected).abs().max() / expected.abs().max().clamp_min(1.0)).item<double>();
  bench.report(op, {shape, dtype, {bytes}, error, dtype == at::kFloat ? 1e-5 : 0.02}, [&] { ours(); },
               {{"torch", [&] { torch(); }}});
}

std::string tokens(int64_t n, const std::string& rest) {
  return std::to_string(n) + (n == 1 ? " token " : " tokens ") + rest;
}

Tensor torch_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t half = x.size(2) / 2;
  const Tensor turned = at::cat({-x.narrow(2, half, half), x.narrow(2, 0, half)}, 2);
  return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1);
}

void elementwise(OpBench& bench, at::ScalarType dtype, int64_t n) {
  const auto size = static_cast<double>(at::elementSize(dtype));
  const Tensor x = bench.randn({n, 4096}, dtype), weight = bench.randn({4096}, dtype);
  const auto numel = static_cast<double>(x.numel());
  report(
      bench, "rms_norm", tokens(n, "of 4096"), dtype, 2 * size * numel, [&] { return ops::rms_norm(x, weight, 1e-5); },
      [&] {
        const Tensor wide = x.to(at::kFloat);
        return (wide * at::rsqrt(wide.pow(2).mean(-1, true) + 1e-5)).to(dtype) * weight;
      });
  const Tensor heads = x.view({n, 32, 128}), cos = bench.randn({n, 128}, dtype), sin = bench.randn({n, 128}, dtype);
  report(
      bench, "rope", tokens(n, "32 + 32 heads of 128"), dtype, 4 * size * numel,
      [&] { return std::get<0>(ops::rope(heads, heads, cos, sin)); },
      [&] {
        torch_rope(heads, cos, sin);  // the key's
        return torch_rope(heads, cos, sin);
      });
  const Tensor gate = bench.randn({n, 11008}, dtype), up = bench.randn({n, 11008}, dtype);
  report(
      bench, "silu_mul", tokens(n, "of 11008"), dtype, 3 * size * static_cast<double>(gate.numel()),
      [&] { return ops::silu_mul(gate, up); }, [&] { return at::silu(gate) * up; });
  const Tensor others = bench.randn({n, 32, 128}, dtype);
  const Tensor lse_a = bench.randn({32, n}, at::kFloat), lse_b = bench.randn({32, n}, at::kFloat);
  report(
      bench, "merge_states", tokens(n, "32 heads of 128"), dtype, 3 * size * numel,
      [&] { return std::get<0>(ops::merge_states(heads, lse_a, others, lse_b)); },
      [&] {
        const Tensor lse = at::logaddexp(lse_a, lse_b);
        const auto share = [&](const Tensor& part) { return (part - lse).exp().t().unsqueeze(-1); };
        return (heads * share(lse_a) + others * share(lse_b)).to(dtype);
      });
}

void rows(OpBench& bench, at::ScalarType dtype, int64_t n) {
  const Tensor x = bench.randn({n, 4096}, dtype), third = bench.range(0, n, 3);
  const int64_t kept = third.size(0);
  const double bytes = 2.0 * static_cast<double>(kept * 4096) * static_cast<double>(at::elementSize(dtype));
  report(
      bench, "gather_rows", tokens(n, "of 4096, a third"), dtype, bytes, [&] { return ops::gather_rows(x, third); },
      [&] { return at::index_select(x, 0, third); });
  // Every kept row takes in its two neighbours.
  const int64_t groups = n / 3;
  const Tensor all = bench.range(0, 3 * groups), begin = bench.range(0, 3 * groups + 1, 3);
  report(
      bench, "merge_tokens", tokens(n, "of 4096, by threes"), dtype, 2 * bytes,
      [&] { return ops::merge_tokens(x, all, begin); },
      [&] {
        return x.narrow(0, 0, 3 * groups).view({groups, 3, 4096}).to(at::kFloat).mean(1).to(dtype);
      });
}

void cache(OpBench& bench, at::ScalarType dtype, int64_t tokens_of_all, int64_t kv_heads, const std::string& shape) {
  const Tensor key = bench.randn({tokens_of_all, kv_heads, 128}, dtype),
               value = bench.randn({tokens_of_all, kv_heads, 128}, dtype);
  const Tensor third = bench.range(0, tokens_of_all, 3);
  const int64_t kept = third.size(0);
  const double bytes = 4.0 * static_cast<double>(kept * kv_heads * 128) * static_cast<double>(at::elementSize(dtype));
  const auto take = [&](const Tensor& index) {
    return [&, index] { return std::get<0>(ops::compact_kv(key, value, index)); };
  };
  report(bench, "compact_kv", shape + ", a third", dtype, bytes, take(third), [&] {
    at::index_select(value, 0, third);
    return at::index_select(key, 0, third);
  });
  const Tensor each = third.unsqueeze(0).expand({kv_heads, kept}).contiguous();
  report(bench, "compact_kv", shape + ", a third a head", dtype, bytes, take(each), [&] {
    const Tensor expanded = each.t().unsqueeze(2).expand({kept, kv_heads, 128});
    value.gather(0, expanded);
    return key.gather(0, expanded);
  });
}

void topk(OpBench& bench, int64_t m, int64_t blocks) {
  const Tensor scores = bench.randn({m * blocks}, at::kFloat);
  const Tensor begin = at::arange(0, m * blocks + 1, m, at::kLong), kept = at::full({blocks}, m / 3, at::kLong);
  const Tensor offset = bench.range(0, m * blocks, m).unsqueeze(1);
  report(
      bench, "topk_sorted", std::to_string(blocks) + " x a third of " + std::to_string(m), at::kFloat,
      static_cast<double>(blocks) * (4.0 * static_cast<double>(m) + 8.0 * static_cast<double>(m / 3)),
      [&] { return ops::topk_sorted(scores, begin, kept); },
      [&] {
        const Tensor best = std::get<1>(at::topk(scores.view({blocks, m}), m / 3));
        return (std::get<0>(best.sort(1)) + offset).flatten();
      });
}

}  // namespace

int main(int argc, char** argv) {
  using namespace espalier::bench;
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  for (const int64_t n : {1, 640, 2880}) elementwise(bench, at::kBFloat16, n);
  elementwise(bench, at::kBFloat16, 8 * 2880);
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) elementwise(bench, dtype, 2880);
  for (const int64_t n : {576, 2880, 11520, 8 * 576, 8 * 2880, 8 * 11520}) rows(bench, at::kBFloat16, n);
  for (const AttentionShape& s : attention_shapes())
    cache(bench, at::kBFloat16, s.batch * s.tokens, s.kv_heads, s.name());
  for (const int64_t blocks : {1, 5, 40}) topk(bench, 576, blocks);
  topk(bench, 11520, 1);
  return bench.status();
}
