// SPDX-License-Identifier: Apache-2.0
// SCOPE on one crop, docs/specs/scope.md in float64 loops, over a made-up or a recorded run.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tests/support/array_signals.h"

namespace espalier::test {

// C(S).
inline double scope_coverage(const Matrix& output, const std::vector<int64_t>& crop,
                             const std::vector<int64_t>& picks) {
  double sum = 0;
  for (const int64_t u : crop) {
    const std::vector<double> x(output.values.begin() + u * output.cols, output.values.begin() + (u + 1) * output.cols);
    double most = 0;
    for (const int64_t s : picks) most = std::max(most, cosine(output, s, x));
    sum += most;
  }
  return sum;
}

// The `number` of `crop` that stay, ascending. output: a row for each token; look: class attention; pins: tokens.
inline std::vector<int64_t> scope_loops(const Matrix& output, const std::function<double(int64_t)>& look,
                                        const std::vector<int64_t>& crop, int64_t number, double alpha,
                                        const std::vector<int64_t>& pins = {}) {
  std::vector<int64_t> picks;
  const auto is_picked = [&](int64_t t) { return std::ranges::count(picks, t) > 0; };
  for (const int64_t t : crop)
    if (std::ranges::count(pins, t) > 0) picks.push_back(t);
  while (std::ssize(picks) < number) {
    const double before = scope_coverage(output, crop, picks);
    int64_t best = -1;
    double largest = -1;
    for (const int64_t v : crop) {
      if (is_picked(v)) continue;
      std::vector<int64_t> with = picks;
      with.push_back(v);
      const double score = (scope_coverage(output, crop, with) - before) * std::pow(look(v), alpha);
      if (score > largest + 1e-5) largest = score, best = v;  // equal but for rounding: the first
    }
    picks.push_back(best);
  }
  std::ranges::sort(picks);
  return picks;
}

}  // namespace espalier::test
