// SPDX-License-Identifier: Apache-2.0
#include "base/spread.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

namespace espalier {
namespace {

// 1, 2, …, n in another order.
std::vector<double> ranks(int n) {
  std::vector<double> values(static_cast<size_t>(n));
  std::iota(values.begin(), values.end(), 1.0);
  std::shuffle(values.begin(), values.end(), std::mt19937(1));
  return values;
}

// The ranks that bound a 95 % interval of the median, from the tables of Campbell and Gardner (1988), appendix.
TEST(Spread, IntervalHasThePublishedRanks) {
  struct Row {
    int n;
    double low, high;
  };
  for (const auto& [n, low, high] :
       {Row{6, 1, 6}, Row{9, 2, 8}, Row{10, 2, 9}, Row{20, 6, 15}, Row{30, 10, 21}, Row{100, 40, 61}}) {
    const Spread spread = spread_of(ranks(n));
    EXPECT_EQ(spread.low, low) << n;
    EXPECT_EQ(spread.high, high) << n;
    EXPECT_EQ(spread.median, (n + 1) / 2.0) << n;
  }
}

TEST(Spread, OfFewValuesTheIntervalIsAllOfThem) {
  EXPECT_EQ(spread_of({7}).noise(), 0);
  const Spread spread = spread_of({12, 8, 10});
  EXPECT_EQ(spread.median, 10);
  EXPECT_EQ(spread.least, 8);
  EXPECT_EQ(spread.most, 12);
  EXPECT_DOUBLE_EQ(spread.noise(), 0.2);
  EXPECT_DOUBLE_EQ(spread.scatter, 1.5);
}

// One run that something else held up makes no noise of twenty others.
TEST(Spread, OneOutlierIsNotScatter) {
  std::vector<double> values(20, 10.0);
  values.push_back(1000);
  const Spread spread = spread_of(values);
  EXPECT_EQ(spread.most, 1000);
  EXPECT_EQ(spread.scatter, 1);
  EXPECT_EQ(spread.noise(), 0);
}

TEST(Spread, TimesOfZeroAreNoDivision) {
  const Spread spread = spread_of({0, 0, 0});
  EXPECT_EQ(spread.noise(), 0);
  EXPECT_EQ(spread.scatter, 1);
}

}  // namespace
}  // namespace espalier
