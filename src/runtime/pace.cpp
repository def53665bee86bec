// SPDX-License-Identifier: Apache-2.0
#include "runtime/pace.h"

#include <algorithm>

namespace espalier {

void Pace::saw(double by_costs_ms, double measured_ms) {
  constexpr double kMostOff = 4;
  constexpr size_t kFewest = 3;  // a single one may have been disturbed
  if (measured_ms > kMostOff * by_costs_ms || by_costs_ms > kMostOff * measured_ms) return;
  last_[seen_++ % last_.size()] = measured_ms / by_costs_ms;
  const size_t count = std::min(seen_, last_.size());
  if (count < kFewest) return;
  std::array<double, kRemembered> sorted = last_;
  const auto end = sorted.begin() + static_cast<std::ptrdiff_t>(count);
  std::ranges::sort(sorted.begin(), end);
  now_ = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

}  // namespace espalier
