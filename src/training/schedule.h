// SPDX-License-Identifier: Apache-2.0
// The learning rate of a step: linear warm-up, then linear decay to a tenth. A pure function, so that a resumed run
// goes on exactly where it was.
#pragma once

#include <algorithm>
#include <cstdint>

namespace espalier {

struct RateSchedule {
  double peak = 1e-3;
  int64_t warm_up = 50;
  int64_t steps = 1000;  // where the decay ends
  double floor = 0.1;    // of the peak, from there on

  // `step` counts from 0; the first step of a warm-up already moves.
  double rate(int64_t step) const {
    if (step < warm_up) return peak * static_cast<double>(step + 1) / static_cast<double>(warm_up);
    const double length = static_cast<double>(std::max<int64_t>(1, steps - warm_up));
    const double left = std::max(0.0, 1.0 - static_cast<double>(step - warm_up) / length);
    return peak * (floor + (1.0 - floor) * left);
  }
};

}  // namespace espalier
