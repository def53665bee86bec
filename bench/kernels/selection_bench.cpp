// SPDX-License-Identifier: Apache-2.0
// The greedy selections at the papers' sizes, beside the loops of published Python code: a matrix of similarities by
// matmul, then a few operators and an argmax a step. Features are random, or clustered as image tokens are. Compared is
// what the choice is for (coverage, least distance, determinant), since ties and rounding may differ.
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_slogdet.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bench/kernels/op_timing.h"
#include "espalier/ops.h"

namespace {

using at::Tensor;
using espalier::bench::OpBench;
namespace ops = espalier::ops;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  int64_t images, size, d, num_kept;
  bool is_clustered;
};

std::string name(const Case& c) {
  return std::to_string(c.images) + " x " + std::to_string(c.num_kept) + " of " + std::to_string(c.size) + ", width " +
         std::to_string(c.d) + (c.is_clustered ? ", clustered" : ", random");
}

struct Inputs {
  Tensor features, begin, kept;
  std::vector<Tensor> images;

  Inputs(const OpBench& bench, at::ScalarType dtype, const Case& c)
      : begin(at::arange(0, c.images * c.size + 1, c.size, at::kLong)),
        kept(at::full({c.images}, c.num_kept, at::kLong)) {
    features = bench.randn({c.images * c.size, c.d}, at::kFloat);
    if (c.is_clustered) {
      const Tensor centre = at::randint(40, {c.images * c.size}, begin.options()).to(bench.device());
      features = features + 1.5 * bench.randn({40, c.d}, at::kFloat).index_select(0, centre) +
                 bench.randn({1, c.d}, at::kFloat);
    }
    features = features.to(dtype);
    for (int64_t i = 0; i < c.images; ++i) images.push_back(features.slice(0, i * c.size, (i + 1) * c.size));
  }
};

Tensor cosines(const Tensor& features) {
  const Tensor x = features.to(at::kFloat), unit = x / x.norm(2, -1, true);
  return at::matmul(unit, unit.t());
}

// ---- the loops: picks of one image, in order ----

Tensor cover_loop(const Tensor& features, int64_t num_kept) {
  const Tensor sim = (1 + cosines(features)) / 2, taken = at::zeros({sim.size(0)}, sim.options());
  Tensor cover = at::zeros({sim.size(0)}, sim.options());
  std::vector<Tensor> picks;
  for (int64_t k = 0; k < num_kept; ++k) {
    const Tensor pick = ((sim - cover.unsqueeze(1)).clamp_min(0).sum(0) + taken).argmax();
    taken.index_fill_(0, pick, -kInfinity);
    cover = at::maximum(cover, sim.index_select(1, pick.view({1})).view(-1));
    picks.push_back(pick);
  }
  return at::stack(picks);
}

Tensor farthest_loop(const Tensor& features, int64_t num_kept) {
  const Tensor distance = 1 - cosines(features);
  const Tensor apart = distance + at::eye(distance.size(0), distance.options())
                                      .masked_fill_(at::eye(distance.size(0), distance.options()) > 0, kInfinity);
  std::vector<Tensor> picks = {apart.amin(1).argmax()};
  Tensor nearest = distance.index_select(1, picks[0].view({1})).view(-1);
  while (static_cast<int64_t>(picks.size()) < num_kept) {
    nearest.index_fill_(0, picks.back(), -1);
    picks.push_back(nearest.argmax());
    nearest = at::minimum(nearest, distance.index_select(1, picks.back().view({1})).view(-1));
  }
  return at::stack(picks);
}

// The incremental Cholesky factor of published code, one row per step.
Tensor dpp_loop(const Tensor& features, const Tensor& relevance, int64_t num_kept) {
  const Tensor kernel = relevance.unsqueeze(1) * cosines(features) * relevance.unsqueeze(0);
  const Tensor factor = at::zeros({num_kept, kernel.size(0)}, kernel.options());
  Tensor residual = kernel.diagonal().clone();
  std::vector<Tensor> picks;
  for (int64_t k = 0; k < num_kept; ++k) {
    const Tensor pick = residual.argmax();
    picks.push_back(pick);
    const Tensor done = factor.slice(0, 0, k), own = done.index_select(1, pick.view({1})).view(-1);
    const Tensor row = (kernel.index_select(0, pick.view({1})).view(-1) - at::matmul(own, done)) /
                       residual.index_select(0, pick.view({1})).sqrt();
    factor.select(0, k).copy_(row);
    residual = residual - row.square();
    residual.index_fill_(0, pick, -kInfinity);
  }
  return at::stack(picks);
}

// ---- what a choice is worth ----

double coverage(const Tensor& features, const Tensor& picks) {
  return ((1 + cosines(features)) / 2).to(at::kDouble).index_select(1, picks).amax(1).sum().item<double>();
}

double least_distance(const Tensor& features, const Tensor& picks) {
  const Tensor among = cosines(features.index_select(0, picks));
  return 1 - among.masked_fill(at::eye(among.size(0), among.options()) > 0, -1).max().item<double>();
}

double log_determinant(const Tensor& features, const Tensor& relevance, const Tensor& picks) {
  const Tensor r = relevance.index_select(0, picks);
  const Tensor kernel = r.unsqueeze(1) * cosines(features.index_select(0, picks)) * r.unsqueeze(0);
  return std::get<1>(at::linalg_slogdet(kernel.to(at::kDouble).cpu())).item<double>();
}

// Times op beside loop over all images; `value` of both choices may differ by `allowed`, relatively.
template <typename Op, typename Loop, typename Value>
void report(OpBench& bench, const char* op_name, at::ScalarType dtype, const Case& c, const Inputs& in, const Op& op,
            const Loop& loop, const Value& value, double allowed) {
  const Tensor picks = op().view({c.images, -1});
  double error = 0;
  for (int64_t i = 0; i < c.images; ++i) {
    const double ours = value(i, picks[i] - i * c.size), theirs = value(i, loop(i));
    error = std::max(error, std::abs(ours - theirs) / std::max(1.0, std::abs(theirs)));
  }
  const auto all_images = [&] {
    for (int64_t i = 0; i < c.images; ++i) loop(i);
  };
  // Of the products alone, half of them by symmetry.
  const double flops = static_cast<double>(c.images * c.size * c.size * c.d);
  bench.report(op_name, {name(c), dtype, {0, flops}, error, allowed}, [&] { op(); }, {{"loop", all_images}});
}

void coverage_rows(OpBench& bench, at::ScalarType dtype, const Case& c) {
  const Inputs in(bench, dtype, c);
  report(
      bench, "facility_location_greedy", dtype, c, in,
      [&] { return ops::facility_location_greedy(in.features, in.begin, in.kept, ops::Similarity::kAffine); },
      [&](int64_t i) { return cover_loop(in.images[i], c.num_kept); },
      [&](int64_t i, const Tensor& picks) { return coverage(in.images[i], picks); }, 1e-4);
}

void farthest_rows(OpBench& bench, at::ScalarType dtype, const Case& c) {
  const Inputs in(bench, dtype, c);
  report(
      bench, "max_min_select", dtype, c, in,
      [&] { return ops::max_min_select(in.features, in.begin, in.kept, ops::Distance::kCosine); },
      [&](int64_t i) { return farthest_loop(in.images[i], c.num_kept); },
      [&](int64_t i, const Tensor& picks) { return least_distance(in.images[i], picks); }, 0.05);
}

void dpp_rows(OpBench& bench, at::ScalarType dtype, const Case& c) {
  const Inputs in(bench, dtype, c);
  const Tensor relevance = at::rand({c.images * c.size}, in.features.options().dtype(at::kFloat)) + 0.5;
  const auto of_image = [&](int64_t i) { return relevance.slice(0, i * c.size, (i + 1) * c.size); };
  report(
      bench, "greedy_dpp", dtype, c, in, [&] { return ops::greedy_dpp(in.features, relevance, in.begin, in.kept); },
      [&](int64_t i) { return dpp_loop(in.images[i], of_image(i), c.num_kept); },
      [&](int64_t i, const Tensor& picks) { return log_determinant(in.images[i], of_image(i), picks); }, 0.05);
}

}  // namespace

int main(int argc, char** argv) {
  const at::NoGradGuard no_gradient;
  OpBench bench(argc, argv);
  const Case catp{5, 576, 1280, 352, true}, one{1, 576, 1280, 352, true}, wide{5, 576, 4096, 128, true};
  if (bench.wants("facility_location_greedy")) {
    coverage_rows(bench, at::kBFloat16, catp);
    coverage_rows(bench, at::kBFloat16, {5, 576, 1280, 352, false});
    for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) coverage_rows(bench, dtype, catp);
    coverage_rows(bench, at::kBFloat16, one);
    coverage_rows(bench, at::kBFloat16, {1, 1280, 4096, 782, true});
    if (bench.is_cuda()) coverage_rows(bench, at::kBFloat16, {40, 576, 1280, 352, true});
  }
  if (bench.wants("max_min_select")) {
    farthest_rows(bench, at::kBFloat16, wide);
    farthest_rows(bench, at::kFloat, {1, 576, 4096, 128, true});
  }
  if (bench.wants("greedy_dpp")) {
    dpp_rows(bench, at::kBFloat16, wide);
    dpp_rows(bench, at::kFloat, {1, 576, 4096, 128, true});
  }
  return bench.status();
}
