// SPDX-License-Identifier: Apache-2.0
// The memory-bound ops at LLaVA shapes: bytes that must move, GB/s, share of the copy bandwidth measured here, and the
// same work as composed ATen operators. Best (what the kernel can do) and median (what a busy machine leaves of it);
// results are compared with the composed form first. Arguments: [seconds a row] [threads].
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "espalier/ops.h"

namespace {

using at::Tensor;
namespace ops = espalier::ops;

double seconds_per_row = 1.0;
double copy_bandwidth = 0.0;  // bytes read and written, a second

struct Seconds {
  double best, median;
};

template <typename Action>
Seconds measure(const Action& action) {
  action();
  std::vector<double> times;
  for (double spent = 0; spent < seconds_per_row || times.size() < 5; spent += times.back()) {
    const auto start = std::chrono::steady_clock::now();
    action();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

// memcpy by all threads between buffers that no cache holds.
double measure_copy_bandwidth() {
  constexpr int64_t kBytes = 256 << 20;
  const Tensor from = at::randn({kBytes / 4});
  const Tensor to = at::empty_like(from);
  const Seconds seconds = measure([&] {
    at::parallel_for(0, kBytes, 1 << 20, [&](int64_t begin, int64_t end) {
      std::memcpy(static_cast<char*>(to.mutable_data_ptr()) + begin,
                  static_cast<const char*>(from.const_data_ptr()) + begin, static_cast<size_t>(end - begin));
    });
  });
  return 2.0 * kBytes / seconds.best;
}

template <typename Op, typename Composed>
void report(const std::string& name, double bytes, const Op& op, const Composed& composed) {
  const double error = (op() - composed()).abs().max().to(at::kDouble).template item<double>();
  if (error > 0.1) {
    std::printf("%-44s wrong by %g\n", name.c_str(), error);
    std::exit(1);
  }
  const Seconds ours = measure(op);
  const Seconds library = measure(composed);
  const double bandwidth = bytes / ours.best;
  std::printf("%-44s best %9.1f us (median %9.1f) %7.2f GB/s, %4.0f %% of copy; ATen best %9.1f us, %.1f x\n",
              name.c_str(), ours.best * 1e6, ours.median * 1e6, bandwidth * 1e-9, 100.0 * bandwidth / copy_bandwidth,
              library.best * 1e6, library.best / ours.best);
}

Tensor composed_rms_norm(const Tensor& x, const Tensor& weight) {
  const Tensor wide = x.to(at::kFloat);
  return (wide * at::rsqrt(wide.pow(2).mean(-1, true) + 1e-5)).to(x.scalar_type()) * weight;
}

Tensor composed_rope(const Tensor& x, const Tensor& cos, const Tensor& sin) {
  const int64_t half = x.size(2) / 2;
  const Tensor turned = at::cat({-x.narrow(2, half, half), x.narrow(2, 0, half)}, 2);
  return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1);
}

void elementwise(at::ScalarType dtype, int64_t n) {
  const auto tensor = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(dtype); };
  const double size = c10::elementSize(dtype);
  const std::string label = std::string(c10::toString(dtype)) + " n " + std::to_string(n);
  const Tensor x = tensor({n, 4096});
  const Tensor weight = tensor({4096});
  report(
      "rms_norm d 4096 " + label, 2 * size * x.numel(), [&] { return ops::rms_norm(x, weight, 1e-5); },
      [&] { return composed_rms_norm(x, weight); });
  const Tensor heads = x.view({n, 32, 128});
  const Tensor cos = tensor({n, 128});
  const Tensor sin = tensor({n, 128});
  report(
      "rope 32 + 32 heads of 128 " + label, 4 * size * x.numel(),
      [&] { return std::get<0>(ops::rope(heads, heads, cos, sin)); },
      [&] {
        composed_rope(heads, cos, sin);
        return composed_rope(heads, cos, sin);
      });
  const Tensor gate = tensor({n, 11008});
  const Tensor up = tensor({n, 11008});
  report(
      "silu_mul d 11008 " + label, 3 * size * gate.numel(), [&] { return ops::silu_mul(gate, up); },
      [&] { return at::silu(gate) * up; });
}

void rows(at::ScalarType dtype, int64_t n) {
  const double size = c10::elementSize(dtype);
  const std::string label = std::string(c10::toString(dtype)) + " n " + std::to_string(n);
  const Tensor x = at::randn({n, 4096}).to(dtype);
  const Tensor index = at::arange(0, n, 3);
  const double bytes = 2 * size * index.size(0) * 4096;
  report(
      "gather_rows d 4096, a third " + label, bytes, [&] { return ops::gather_rows(x, index); },
      [&] { return at::index_select(x, 0, index); });
  const Tensor key = x.view({n, 32, 128});
  report(
      "compact_kv g 32 d 128, a third " + label, 2 * bytes,
      [&] { return std::get<0>(ops::compact_kv(key, key, index)); },
      [&] {
        at::index_select(key, 0, index);
        return at::index_select(key, 0, index);
      });
  const Tensor choice = index.unsqueeze(0).expand({32, index.size(0)}).contiguous();
  report(
      "compact_kv a choice a head " + label, 2 * bytes, [&] { return std::get<0>(ops::compact_kv(key, key, choice)); },
      [&] {
        const Tensor expanded = choice.t().unsqueeze(2).expand({index.size(0), 32, 128});
        key.gather(0, expanded);
        return key.gather(0, expanded);
      });
}

void topk(int64_t m) {
  const Tensor scores = at::randn({m});
  const Tensor begin = at::tensor({int64_t{0}, m});
  const Tensor num_kept = at::tensor({m / 3});
  report(
      "topk_sorted a third of " + std::to_string(m), 4.0 * m + 8.0 * (m / 3),
      [&] { return ops::topk_sorted(scores, begin, num_kept); },
      [&] { return std::get<0>(std::get<1>(at::topk(scores, m / 3)).sort()); });
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  const at::NoGradGuard no_grad;
  copy_bandwidth = measure_copy_bandwidth();
  std::printf("%d threads, copy %.1f GB/s (best; read + written)\n", at::get_num_threads(), copy_bandwidth * 1e-9);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const int64_t n : {1, 640, 2944}) elementwise(dtype, n);
  for (const int64_t n : {640, 2944}) rows(at::kBFloat16, n);
  for (const int64_t m : {576, 2880, 16384}) topk(m);
}
