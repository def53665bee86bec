// SPDX-License-Identifier: Apache-2.0
#include "eval/statistics.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace espalier::eval {
namespace {

// Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: the score method of Wilson.
TEST(Statistics, WilsonIntervalsOfThePublishedTable) {
  struct Case {
    int64_t correct, n;
    double low, high;
  };
  for (const Case& c : {Case{81, 263, 0.2553, 0.3662}, Case{15, 148, 0.0624, 0.1605}, Case{0, 20, 0.0000, 0.1611},
                        Case{1, 29, 0.0061, 0.1718}}) {
    const Interval interval = wilson_interval(c.correct, c.n);
    EXPECT_NEAR(interval.low, c.low, 5e-5);
    EXPECT_NEAR(interval.high, c.high, 5e-5);
    const Interval mirrored = wilson_interval(c.n - c.correct, c.n);
    EXPECT_NEAR(mirrored.low, 1 - c.high, 5e-5);
    EXPECT_NEAR(mirrored.high, 1 - c.low, 5e-5);
  }
  EXPECT_EQ(wilson_interval(0, 0).low, 0);
  EXPECT_EQ(wilson_interval(0, 0).high, 1);
}

// Every outcome of n fair coins, counted.
TEST(Statistics, McNemarAgainstCountingAllOutcomes) {
  for (int n = 0; n <= 14; ++n)
    for (int first = 0; first <= n; ++first) {
      int as_uneven = 0;
      for (int outcome = 0; outcome < 1 << n; ++outcome) {
        const int ones = __builtin_popcount(static_cast<unsigned>(outcome));
        as_uneven += std::abs(2 * ones - n) >= std::abs(2 * first - n);
      }
      EXPECT_NEAR(mcnemar_p(first, n - first), static_cast<double>(as_uneven) / (1 << n), 1e-12) << first << " " << n;
    }
}

// All n^n resamples of six items, each as likely as any other.
TEST(Statistics, BootstrapAgainstAllResamples) {
  const std::vector<double> first = {1, 1, 0, 1, 1, 0}, second = {1, 0, 0, 0, 1, 1};
  std::vector<double> means;
  for (int code = 0; code < 46656; ++code) {
    double sum = 0;
    for (int i = 0, rest = code; i < 6; ++i, rest /= 6)
      sum += second[static_cast<size_t>(rest % 6)] - first[static_cast<size_t>(rest % 6)];
    means.push_back(sum / 6);
  }
  std::ranges::sort(means);
  const Difference difference = paired_difference(first, second, 20000, 3);
  EXPECT_NEAR(difference.mean, -1.0 / 6, 1e-12);
  EXPECT_NEAR(difference.interval.low, means[static_cast<size_t>(0.025 * 46655)], 1e-9);
  EXPECT_NEAR(difference.interval.high, means[static_cast<size_t>(0.975 * 46655)], 1e-9);
}

// For many items the bootstrap is the normal interval of a mean.
TEST(Statistics, BootstrapOfManyItems) {
  std::vector<double> first, second;
  for (int i = 0; i < 2000; ++i) {
    first.push_back(i % 10 < 9);
    second.push_back(i % 10 < 6 || i % 100 == 99);
  }
  double mean = 0, square = 0;
  for (size_t i = 0; i < first.size(); ++i) mean += (second[i] - first[i]) / 2000;
  for (size_t i = 0; i < first.size(); ++i) square += std::pow(second[i] - first[i] - mean, 2) / 2000;
  const double half = 1.96 * std::sqrt(square / 2000);
  const Difference difference = paired_difference(first, second);
  EXPECT_NEAR(difference.mean, mean, 1e-12);
  EXPECT_NEAR(difference.interval.low, mean - half, half * 0.08);
  EXPECT_NEAR(difference.interval.high, mean + half, half * 0.08);
}

TEST(Statistics, EqualRunsDoNotDiffer) {
  const std::vector<double> scores = {1, 0, 1, 1};
  const Difference difference = paired_difference(scores, scores);
  EXPECT_EQ(difference.mean, 0);
  EXPECT_EQ(difference.interval.low, 0);
  EXPECT_EQ(difference.interval.high, 0);
  EXPECT_EQ(paired_difference({}, {}).mean, 0);
}

}  // namespace
}  // namespace espalier::eval
