// SPDX-License-Identifier: Apache-2.0
// The median time of an action, for the benchmark programs of this folder.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <vector>

namespace espalier::bench {

// One call to warm up, then calls for `budget` seconds, at least `at_least`.
template <typename Action>
double median_seconds(const Action& action, double budget = 1.0, size_t at_least = 5) {
  action();
  std::vector<double> times;
  for (double spent = 0; spent < budget || times.size() < at_least; spent += times.back()) {
    const auto start = std::chrono::steady_clock::now();
    action();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace espalier::bench
