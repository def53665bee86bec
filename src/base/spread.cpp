// SPDX-License-Identifier: Apache-2.0
#include "base/spread.h"

#include <algorithm>
#include <cmath>

namespace espalier {

namespace {

// How many of the smallest, and of the largest, of n values lie outside the interval of the median: the most for which
// either tail of the binomial distribution (n, 1/2) stays within 2.5 %.
size_t left_out_at_each_end(size_t n) {
  const double size = static_cast<double>(n);
  double tail = 0;
  for (size_t i = 0;; ++i) {
    const double at = static_cast<double>(i);
    tail += std::exp(std::lgamma(size + 1) - std::lgamma(at + 1) - std::lgamma(size - at + 1) - size * std::log(2.0));
    if (tail > 0.025) return i == 0 ? 0 : i - 1;
  }
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  std::ranges::sort(values);
  const size_t n = values.size(), outside = left_out_at_each_end(n);
  const auto at = [&](double q) { return values[static_cast<size_t>(std::lround(q * static_cast<double>(n - 1)))]; };
  const double tenth = at(0.1);
  return {.median = (values[(n - 1) / 2] + values[n / 2]) / 2,
          .low = values[outside],
          .high = values[n - 1 - outside],
          .least = values.front(),
          .most = values.back(),
          .scatter = tenth > 0 ? at(0.9) / tenth : 1};
}

}  // namespace espalier
