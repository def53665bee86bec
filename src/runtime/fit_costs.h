// SPDX-License-Identifier: Apache-2.0
// From measured passes to what each term costs: weighted least squares, with no cost below 0.
#pragma once

#include <vector>

namespace espalier {

struct TimedPass {
  std::vector<double> terms;  // their values
  double milliseconds = 0;
  double of_milliseconds = 1;  // above 0: the time in proportion to which an error counts
};

// Milliseconds of each term. One that the passes do not tell apart from others costs 0. A few passes that are far off
// the others (the machine did something else meanwhile) do not count. Throws Error without passes.
std::vector<double> fit_costs(std::vector<TimedPass> passes);

}  // namespace espalier
