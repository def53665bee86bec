// SPDX-License-Identifier: Apache-2.0
// facility_location_greedy at CATP's sizes (images of 576 tokens, 352 kept), beside the plain torch loop: similarities
// by matmul, then gains of all candidates and an argmax a step. Features are random, or clustered as image tokens are.
// Medians (the loop: one run); the values reached are compared first. Arguments: [seconds a row] [threads].
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "bench/kernels/median_time.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
namespace ops = espalier::ops;

double seconds_per_row = 1.0;

Tensor similarities(const Tensor& features) {
  const Tensor x = features.to(at::kFloat), unit = x / x.norm(2, -1, true);
  return (1 + at::matmul(unit, unit.t())) / 2;
}

Tensor torch_loop(const Tensor& features, int64_t images, int64_t num_kept) {
  std::vector<Tensor> picks;
  const int64_t size = features.size(0) / images;
  for (int64_t i = 0; i < images; ++i) {
    const Tensor sim = similarities(features.slice(0, i * size, (i + 1) * size));
    Tensor cover = at::zeros({size});
    const Tensor taken = at::zeros({size});
    for (int64_t k = 0; k < num_kept; ++k) {
      const Tensor pick = ((sim - cover.unsqueeze(1)).clamp_min(0).sum(0) + taken).argmax();
      taken.index_fill_(0, pick, -std::numeric_limits<float>::infinity());
      cover = at::maximum(cover, sim.index_select(1, pick.view({1})).view({size}));
      picks.push_back(pick + i * size);
    }
  }
  return at::stack(picks);
}

double coverage(const Tensor& features, const Tensor& picks, int64_t images) {
  double value = 0.0;
  const Tensor each = picks.view({images, -1});
  const int64_t size = features.size(0) / images;
  for (int64_t i = 0; i < images; ++i) {
    const Tensor sim = similarities(features.slice(0, i * size, (i + 1) * size)).to(at::kDouble);
    value += sim.index_select(1, each[i] - i * size).amax(1).sum().item<double>();
  }
  return value;
}

void report(at::ScalarType dtype, bool is_clustered, int64_t images, int64_t size, int64_t d, int64_t num_kept) {
  Tensor features = at::randn({images * size, d});
  if (is_clustered)
    features = features + 1.5 * at::randn({40, d}).index_select(0, at::randint(40, {images * size}, at::kLong)) +
               at::randn({1, d});
  features = features.to(dtype);
  const Tensor begin = at::arange(0, images * size + 1, size), kept = at::full({images}, num_kept, at::kLong);
  const auto op = [&] { return ops::facility_location_greedy(features, begin, kept, ops::Similarity::kAffine); };
  const auto plain = [&] { return torch_loop(features, images, num_kept); };
  const double difference = coverage(features, op(), images) - coverage(features, plain(), images);
  const double seconds = espalier::bench::median_seconds(op, seconds_per_row);
  const double other = espalier::bench::median_seconds(plain, 0.0, 1);
  const double flop = static_cast<double>(images * size * size * d);  // half of the symmetric product
  std::printf(
      "%-9s %-9s images %2ld of %4ld d %4ld kept %4ld %8.2f ms (products at %.0f GFLOP/s or more)   torch loop %8.1f "
      "ms (%.0f x), coverage %+.1e\n",
      c10::toString(dtype), is_clustered ? "clustered" : "random", images, size, d, num_kept, seconds * 1e3,
      flop / seconds * 1e-9, other * 1e3, other / seconds, difference);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) seconds_per_row = std::atof(argv[1]);
  if (argc > 2) at::set_num_threads(std::atoi(argv[2]));
  const at::NoGradGuard no_grad;
  std::printf("%d threads\n", at::get_num_threads());
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const bool is_clustered : {false, true}) report(dtype, is_clustered, 5, 576, 1280, 352);
    report(dtype, true, 1, 576, 1280, 352);
  }
  report(at::kBFloat16, true, 1, 1280, 4096, 782);
}
