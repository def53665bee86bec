// SPDX-License-Identifier: Apache-2.0
// Attention beside the library's own and beside the machine's ceilings, in one process: GFLOP/s of the work that
// causality leaves (2 products · 2 · head_dim for each visible pair), and for decoding GB/s of the cache. Medians.
// Arguments: [seconds a row] [threads].
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "espalier/ops.h"
#include "kernels/attention.h"
#include "kernels/cpu_level.h"

namespace {

using at::Tensor;
using espalier::kernels::CpuLevel;
using espalier::kernels::ElementType;

double seconds_per_row = 2.0;

// Medians of two actions timed in turn, so that both see the machine in the same state.
template <typename A, typename B>
std::pair<double, double> median_seconds(const A& first, const B& second) {
  const auto once = [](const auto& action) {
    const auto start = std::chrono::steady_clock::now();
    action();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto median = [](std::vector<double>& t) {
    std::nth_element(t.begin(), t.begin() + t.size() / 2, t.end());
    return t[t.size() / 2];
  };
  once(first), once(second);
  std::vector<double> a, b;
  for (double spent = 0; spent < seconds_per_row || a.size() < 5;) {
    a.push_back(once(first));
    b.push_back(once(second));
    spent += a.back() + b.back();
  }
  return {median(a), median(b)};
}

Tensor integers(std::initializer_list<int64_t> values) {
  Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

double matrix_rate(at::ScalarType dtype) {
  const Tensor a = at::randn({2048, 2048}).to(dtype), b = at::randn({2048, 2048}).to(dtype);
  const auto product = [&] { at::linear(a, b); };
  return 2.0 * 2048 * 2048 * 2048 / median_seconds(product, product).first * 1e-9;
}

double read_rate() {
  const Tensor x = at::randn({64 << 20});
  const auto pass = [&] { at::sum(x); };
  return x.nbytes() / median_seconds(pass, pass).first * 1e-9;
}

struct Case {
  const char* name;
  int64_t queries, keys, h, g, d;
  bool is_causal;
};

struct Timing {
  double ours, library;
};

Timing time_case(const Case& c, at::ScalarType dtype) {
  const Tensor q = at::randn({c.queries, c.h, c.d}).to(dtype);
  const Tensor k = at::randn({c.keys, c.g, c.d}).to(dtype), v = at::randn({c.keys, c.g, c.d}).to(dtype);
  const Tensor query_begin = integers({0, c.queries}), key_begin = integers({0}), key_length = integers({c.keys});
  const double scale = 1 / std::sqrt(static_cast<double>(c.d));
  const auto heads_first = [](const Tensor& t) { return t.transpose(0, 1).unsqueeze(0); };
  // The library wants as many KV heads as query heads; its causality is aligned at the start, so decoding runs without.
  const Tensor k_all = heads_first(k).repeat_interleave(c.h / c.g, 1),
               v_all = heads_first(v).repeat_interleave(c.h / c.g, 1);
  const bool library_causal = c.is_causal && c.queries == c.keys;
  const auto [ours, library] = median_seconds(
      [&] { espalier::ops::attention(q, k, v, query_begin, key_begin, key_length, scale, c.is_causal); },
      [&] {
        at::_scaled_dot_product_flash_attention_for_cpu(heads_first(q), k_all, v_all, 0.0, library_causal, {}, scale);
      });
  return {ours, library};
}

double pairs(const Case& c) {
  return c.is_causal ? 0.5 * c.queries * (c.keys - c.queries + 1.0 + c.keys) : 1.0 * c.queries * c.keys;
}

ElementType dtype_of(at::ScalarType dtype) {
  if (dtype == at::kFloat) return ElementType::kFloat32;
  return dtype == at::kBFloat16 ? ElementType::kBFloat16 : ElementType::kFloat16;
}

void print_dtype(at::ScalarType dtype, double matrix, double read) {
  const auto name = espalier::kernels::attention_cpu_name(dtype_of(dtype), espalier::kernels::cpu_level());
  std::printf("\n%s, kernel %.*s, matrix rate %.0f GFLOP/s, reading %.1f GB/s\n", c10::toString(dtype),
              static_cast<int>(name.size()), name.data(), matrix, read);
  std::printf("%-34s %10s %10s %9s %9s %8s %8s\n", "prefill", "ours ms", "library ms", "GFLOP/s", "library", "share",
              "faster");
  for (const Case& c : {Case{"causal 2958, 20 heads of 64", 2958, 2958, 20, 20, 64, true},
                        Case{"causal 700, 20 heads of 64", 700, 700, 20, 20, 64, true},
                        Case{"causal 2958, 32/8 heads of 128", 2958, 2958, 32, 8, 128, true},
                        Case{"causal 2958, 20 heads of 80", 2958, 2958, 20, 20, 80, true},
                        Case{"causal 2958, 24 heads of 32", 2958, 2958, 24, 24, 32, true},
                        Case{"full 577, 16 heads of 64", 577, 577, 16, 16, 64, false}}) {
    const Timing t = time_case(c, dtype);
    const double flops = 4.0 * c.d * c.h * pairs(c) * 1e-9;
    std::printf("%-34s %10.2f %10.2f %9.0f %9.0f %7.0f%% %7.1fx\n", c.name, t.ours * 1e3, t.library * 1e3,
                flops / t.ours, flops / t.library, 100 * flops / t.ours / matrix, t.library / t.ours);
  }
  std::printf("%-34s %10s %10s %9s %9s %8s %8s\n", "decode", "ours ms", "library ms", "GB/s", "library", "share",
              "faster");
  for (const Case& c : {Case{"1 row, 2958 keys, 20 heads of 64", 1, 2958, 20, 20, 64, true},
                        Case{"1 row, 16384 keys, 20 heads of 64", 1, 16384, 20, 20, 64, true},
                        Case{"1 row, 16384 keys, 32/8 of 128", 1, 16384, 32, 8, 128, true},
                        Case{"4 rows, 16384 keys, 20 heads of 64", 4, 16384, 20, 20, 64, true}}) {
    const Timing t = time_case(c, dtype);
    const double bytes = 2.0 * c.keys * c.g * c.d * c10::elementSize(dtype) * 1e-9;
    std::printf("%-34s %10.3f %10.3f %9.1f %9.1f %7.0f%% %7.1fx\n", c.name, t.ours * 1e3, t.library * 1e3,
                bytes / t.ours, bytes / t.library, 100 * bytes / t.ours / read, t.library / t.ours);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // rows show as they come
  std::printf("%d threads\n", at::get_num_threads());
  const double read = read_rate(), f32 = matrix_rate(at::kFloat), bf16 = matrix_rate(at::kBFloat16);
  print_dtype(at::kBFloat16, bf16, read);
  print_dtype(at::kFloat, f32, read);
  print_dtype(at::kHalf, f32, read);
  return 0;
}
