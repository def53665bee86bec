// SPDX-License-Identifier: Apache-2.0
#include "pruning/atp_modules.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/adaptive_avg_pool1d.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

namespace espalier {

namespace {

constexpr double kFlat = 1e-12;  // a smaller range is none (B6)
constexpr int64_t kBins = 256;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// (s - low) / range, 0.5 where there is no range, clipped for tokens outside of it.
at::Tensor rescaled(const at::Tensor& scores, const at::Tensor& low, const at::Tensor& range) {
  const at::Tensor is_flat = range < kFlat;
  const at::Tensor divided = (scores - low) / at::where(is_flat, at::full_like(range, 1.0), range);
  return at::where(is_flat, at::full_like(scores, 0.5), at::clamp(divided, 0.0, 1.0));
}

// Share of the other tokens in range that score lower, equals counting half; what equals all has 0.5.
at::Tensor ranks(const at::Tensor& scores, const at::Tensor& in_range) {
  const at::Tensor counts = in_range.defined() ? in_range : at::ones_like(scores, at::kBool);
  const at::Tensor mine = scores.unsqueeze(1), other = scores.unsqueeze(0);
  const at::Tensor itself = counts.to(scores.scalar_type());
  const at::Tensor below = (other < mine).logical_and(counts).sum(1).to(scores.scalar_type());
  const at::Tensor alike = (other == mine).logical_and(counts).sum(1).to(scores.scalar_type()) - itself;
  const at::Tensor others = itself.sum() - itself;
  return at::where(others == 0, at::full_like(scores, 0.5), (below + alike / 2) / others.clamp_min(1));
}

}  // namespace

at::Tensor atp_spatial_score(GridSize grid, std::span<const int64_t> strides, double lambda_sample) {
  at::Tensor scores = at::empty({grid.rows * grid.cols}, at::kFloat);
  auto* out = scores.data_ptr<float>();
  for (int64_t row = 0; row < grid.rows; ++row)
    for (int64_t col = 0; col < grid.cols; ++col) {
      double best = -kInfinity;
      for (const int64_t stride : strides)
        if (row % stride == 0 && col % stride == 0)
          best = std::max(best, 1.0 - lambda_sample / static_cast<double>(stride * stride));
      *out++ = best == -kInfinity ? 0.0F : static_cast<float>(best);
    }
  return scores;
}

at::Tensor atp_redundancy_score(const at::Tensor& self, const at::Tensor& cross, AtpNorm norm,
                                const at::Tensor& in_range) {
  const at::Tensor mean = (self + cross) / 2;
  if (mean.size(0) == 0) return mean;
  const auto outside = [&](double value) {
    return in_range.defined() ? mean.masked_fill(in_range.logical_not(), value) : mean;
  };
  switch (norm) {
    case AtpNorm::kNone:
      return mean;
    case AtpNorm::kSigmoid:
      return at::sigmoid(mean);
    case AtpNorm::kRank:
      return ranks(mean.detach(), in_range);
    case AtpNorm::kMax: {
      const at::Tensor high = outside(-kInfinity).amax();
      return rescaled(mean, at::full_like(high, 0.0), high);
    }
    case AtpNorm::kMinmax:
      break;
  }
  const at::Tensor low = outside(kInfinity).amin(), high = outside(-kInfinity).amax();
  return rescaled(mean, low, high - low);
}

int64_t atp_head_width(AtpHeadInput input, GridSize grid) {
  switch (input) {
    case AtpHeadInput::kMean:
      return 2;
    case AtpHeadInput::kPool:
      return 2 * kBins;
    case AtpHeadInput::kScatter:
      break;
  }
  return 2 * grid.rows * grid.cols;
}

at::Tensor atp_head_input(const at::Tensor& self, const at::Tensor& cross, const at::Tensor& places, GridSize grid,
                          AtpHeadInput input, const at::Tensor& present) {
  if (input == AtpHeadInput::kMean) {
    const auto mean = [&](const at::Tensor& scores) {
      return present.defined() ? (scores * present).sum() / present.sum().clamp_min(kFlat) : scores.mean();
    };
    return at::stack({mean(self), mean(cross)});
  }
  const auto on_grid = [&](const at::Tensor& scores) {
    const at::Tensor scattered = at::zeros({grid.rows * grid.cols}, scores.options()).index_copy(0, places, scores);
    if (input == AtpHeadInput::kScatter) return scattered;
    return at::adaptive_avg_pool1d(scattered.view({1, 1, -1}), {kBins}).flatten();
  };
  return at::cat({on_grid(self), on_grid(cross)});
}

AtpThresholds atp_thresholds(const AtpModule& module, AtpActivation activation, const at::Tensor& head_input) {
  at::Tensor z = at::linear(head_input.unsqueeze(0), module.mix_weight, module.mix_bias);
  if (activation == AtpActivation::kRelu) z = at::relu(z);
  const auto head = [&](const at::Tensor& weight, const at::Tensor& bias) {
    return at::sigmoid(at::linear(z, weight, bias)).squeeze();
  };
  return {head(module.redundancy_weight, module.redundancy_bias), head(module.spatial_weight, module.spatial_bias)};
}

at::Tensor atp_soft_mask(const at::Tensor& redundancy, const at::Tensor& spatial, const AtpThresholds& thresholds,
                         double temperature, AtpStrategy strategy) {
  const at::Tensor by_redundancy = at::sigmoid((redundancy - thresholds.redundancy) * temperature);
  if (strategy == AtpStrategy::kRedundant) return by_redundancy;
  const at::Tensor by_place = at::sigmoid((spatial - thresholds.spatial) * temperature);
  if (strategy == AtpStrategy::kSpatial) return by_place;
  return at::where(by_place > by_redundancy, by_place, by_redundancy);
}

at::Tensor atp_hard_keep(const at::Tensor& redundancy, const at::Tensor& spatial, const AtpThresholds& thresholds,
                         int64_t min_keep, AtpStrategy strategy) {
  const at::Tensor by_redundancy = redundancy > thresholds.redundancy, by_place = spatial > thresholds.spatial;
  const at::Tensor keep = strategy == AtpStrategy::kRedundant ? by_redundancy
                          : strategy == AtpStrategy::kSpatial ? by_place
                                                              : by_redundancy | by_place;
  const int64_t floor = std::min(min_keep, keep.size(0));
  if (floor == 0) return keep;
  // The first `floor` of all that stay, then of the rest by score: those already in stay in.
  const at::Tensor order =
      redundancy.masked_fill(keep, kInfinity).argsort(/*stable=*/true, 0, /*descending=*/true).slice(0, 0, floor);
  return keep.index_fill(0, order, true);
}

}  // namespace espalier
