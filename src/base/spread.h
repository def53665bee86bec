// SPDX-License-Identifier: Apache-2.0
// The middle of measured times and how far it can be trusted, by order statistics alone: times of a shared machine
// follow no known distribution.
#pragma once

#include <vector>

namespace espalier {

struct Spread {
  double median = 0;
  // Holds the median of all further runs too with a probability of 95 %; of fewer than six values, which cannot say
  // that much, all of them.
  double low = 0, high = 0;
  double least = 0, most = 0;
  double scatter = 1;  // the value that nine tenths lie below, over the one that a tenth does

  double noise() const { return median > 0 ? (high - low) / (2 * median) : 0; }  // half the interval, of the median
};

// `values`: one or more.
Spread spread_of(std::vector<double> values);

}  // namespace espalier
