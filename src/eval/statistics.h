// SPDX-License-Identifier: Apache-2.0
// The statistics of a benchmark: intervals of shares, and differences between two runs on the same items. Plain numbers
// in and out.
#pragma once

#include <cstdint>
#include <span>

namespace espalier::eval {

struct Interval {
  double low = 0, high = 0;
};

// Wilson's score interval of a share, 95 % (Wilson 1927). n = 0 gives [0, 1].
Interval wilson_interval(int64_t correct, int64_t n);

// McNemar's exact two-sided test: of the items that only one of two runs got right, `only_first` and `only_second`. The
// probability of a split at least as uneven if both were equally good.
double mcnemar_p(int64_t only_first, int64_t only_second);

struct Difference {
  double mean = 0;    // of second - first over items
  Interval interval;  // 95 %, percentiles of the mean over resampled items
};

// `first` and `second`: the score of each item in [0, 1], same length. Deterministic by seed.
Difference paired_difference(std::span<const double> first, std::span<const double> second, int resamples = 2000,
                             uint64_t seed = 0);

}  // namespace espalier::eval
