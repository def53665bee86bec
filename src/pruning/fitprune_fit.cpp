// SPDX-License-Identifier: Apache-2.0
#include "pruning/fitprune_fit.h"

#include <algorithm>
#include <iterator>
#include <numeric>

namespace espalier {

namespace {

constexpr double kSlack = 1e-12;            // on a mass
constexpr double kPrecision = 0.01 + 1e-6;  // of alpha

// Whether each token is in the longest prefix, lowest first (of equals the higher position), whose loss leaves (1 -
// alpha) of the mass.
std::vector<bool> longest_prefix(std::span<const double> received, double mass, double alpha) {
  std::vector<size_t> order(received.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order,
                    [&](size_t a, size_t b) { return received[a] != received[b] ? received[a] < received[b] : a > b; });
  double left = std::accumulate(received.begin(), received.end(), 0.0);
  std::vector<bool> is_in(received.size(), false);
  for (const size_t token : order) {
    left -= received[token];
    if (left < (1 - alpha) * mass - kSlack) break;
    is_in[token] = true;
  }
  return is_in;
}

}  // namespace

std::vector<int64_t> fitprune_deletable(std::span<const double> cross, std::span<const double> self, double cross_mass,
                                        double self_mass, double alpha) {
  const std::vector<bool> by_cross = longest_prefix(cross, cross_mass, alpha);
  const std::vector<bool> by_self = longest_prefix(self, self_mass, alpha);
  std::vector<int64_t> deletable;
  for (size_t i = 0; i < cross.size(); ++i)
    if (by_cross[i] && by_self[i]) deletable.push_back(static_cast<int64_t>(i));
  return deletable;
}

double FitpruneCost::before_output(int64_t n) const {
  const auto tokens = static_cast<double>(n);
  return 3 * tokens * hidden_size * hidden_size + 2 * tokens * tokens * hidden_size;
}

double FitpruneCost::behind_output(int64_t n) const {
  const auto tokens = static_cast<double>(n);
  return tokens * hidden_size * hidden_size + 3 * tokens * hidden_size * intermediate_size;
}

double FitpruneCost::full(int64_t n) const {
  return static_cast<double>(num_layers) * (before_output(n) + behind_output(n));
}

double FitpruneCost::of(int64_t n, std::span<const int64_t> deleted) const {
  double cost = 0;
  for (const int64_t number : deleted) {
    cost += before_output(n);
    n -= number;
    cost += behind_output(n);
  }
  return cost;
}

bool meet_fitprune_budget(FitpruneCounts& counts, int64_t num_visual, const FitpruneCost& cost, double reduction) {
  const auto samples = static_cast<double>(counts.size());
  const double target = cost.full(num_visual) * (1 - reduction);
  std::vector<int64_t> left(counts.size(), num_visual);
  double used = 0;
  for (int64_t layer = 0; layer < cost.num_layers; ++layer) {
    double rest = 0;  // were nothing deleted from here on
    for (const int64_t n : left) {
      used += cost.before_output(n);
      rest += cost.behind_output(n) +
              static_cast<double>(cost.num_layers - 1 - layer) * (cost.before_output(n) + cost.behind_output(n));
    }
    if ((used + rest) / samples <= target) {
      for (auto& of_sample : counts) std::fill(of_sample.begin() + layer, of_sample.end(), 0);
      return true;
    }
    for (size_t c = 0; c < counts.size(); ++c) {
      left[c] -= counts[c][static_cast<size_t>(layer)];
      used += cost.behind_output(left[c]);
    }
  }
  return used / samples <= target;
}

FittedFitprune search_fitprune(int64_t num_visual, const FitpruneCost& cost, double reduction,
                               const std::function<FitpruneCounts(double alpha)>& counts_at) {
  double low = 0, high = 1;
  FitpruneCounts best;
  while (high - low > kPrecision) {
    const double alpha = (low + high) / 2;
    FitpruneCounts counts = counts_at(alpha);
    if (meet_fitprune_budget(counts, num_visual, cost, reduction)) {
      high = alpha;
      best = std::move(counts);
    } else {
      low = alpha;
    }
  }
  if (best.empty()) {
    best = counts_at(high);
    meet_fitprune_budget(best, num_visual, cost, reduction);
  }
  FittedFitprune fitted{high, 0, std::vector<int64_t>(static_cast<size_t>(cost.num_layers), 0)};
  for (size_t layer = 0; layer < fitted.deleted.size(); ++layer) {
    for (const auto& of_sample : best) fitted.deleted[layer] += of_sample[layer];
    fitted.deleted[layer] /= std::ssize(best);
  }
  fitted.achieved = 1 - cost.of(num_visual, fitted.deleted) / cost.full(num_visual);
  return fitted;
}

}  // namespace espalier
