// SPDX-License-Identifier: Apache-2.0
#include "eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"

namespace espalier::eval {

namespace {

constexpr double kNormal95 = 1.959963984540054;  // 97.5 % quantile of the standard normal

// The value at a share of the way through ascending values, between neighbours in proportion.
double quantile(std::span<const double> ascending, double share) {
  const double at = share * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, ascending.size() - 1);
  return ascending[below] + (at - static_cast<double>(below)) * (ascending[above] - ascending[below]);
}

}  // namespace

Interval wilson_interval(int64_t correct, int64_t n) {
  if (n == 0) return {0, 1};
  const double count = static_cast<double>(n), share = static_cast<double>(correct) / count;
  const double z2 = kNormal95 * kNormal95;
  const double middle = (share + z2 / (2 * count)) / (1 + z2 / count);
  const double half = kNormal95 / (1 + z2 / count) * std::sqrt(share * (1 - share) / count + z2 / (4 * count * count));
  return {correct == 0 ? 0.0 : middle - half, correct == n ? 1.0 : middle + half};
}

double mcnemar_p(int64_t only_first, int64_t only_second) {
  const int64_t n = only_first + only_second, smaller = std::min(only_first, only_second);
  if (n == 0) return 1;
  double p = 0;
  const auto log_factorial = [](int64_t k) { return std::lgamma(static_cast<double>(k) + 1); };
  for (int64_t k = 0; k <= smaller; ++k)
    p += std::exp(log_factorial(n) - log_factorial(k) - log_factorial(n - k) - static_cast<double>(n) * std::log(2.0));
  return std::min(1.0, 2 * p);
}

Difference paired_difference(std::span<const double> first, std::span<const double> second, int resamples,
                             uint64_t seed) {
  const size_t n = first.size();
  if (n == 0) return {};
  std::vector<double> differences(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += differences[i] = second[i] - first[i];
  SplitMix64 draws(seed);
  std::vector<double> means(static_cast<size_t>(resamples));
  for (double& mean : means) {
    double resampled = 0;
    for (size_t i = 0; i < n; ++i) resampled += differences[draws.below(n)];
    mean = resampled / static_cast<double>(n);
  }
  std::ranges::sort(means);
  return {sum / static_cast<double>(n), {quantile(means, 0.025), quantile(means, 0.975)}};
}

}  // namespace espalier::eval
