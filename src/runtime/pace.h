// SPDX-License-Identifier: Apache-2.0
// How fast the machine is now, beside when its costs were measured: its clock, its warmth and whoever shares it change.
#pragma once

#include <array>
#include <cstddef>

namespace espalier {

class Pace {
 public:
  // A request that should have taken so long by its costs, and did. One that is off by more than four times tells
  // nothing about the pace.
  void saw(double by_costs_ms, double measured_ms);
  // What a time by the costs is to be multiplied by: the median of the last requests, 1 before the third.
  double now() const { return now_; }

 private:
  static constexpr size_t kRemembered = 7;

  std::array<double, kRemembered> last_{};
  size_t seen_ = 0;
  double now_ = 1;
};

}  // namespace espalier
