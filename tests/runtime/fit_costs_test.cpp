// SPDX-License-Identifier: Apache-2.0
#include "runtime/fit_costs.h"

#include <gtest/gtest.h>

#include <random>

#include "espalier/error.h"

namespace espalier {
namespace {

// Passes that take 3 + 0.02 x + 0.5 y ms, times 1 + noise.
std::vector<TimedPass> passes(double noise) {
  std::mt19937 draws(1);
  std::uniform_real_distribution<double> x(0, 1000), y(0, 20), off(-noise, noise);
  std::vector<TimedPass> all;
  for (int i = 0; i < 60; ++i) {
    TimedPass pass{.terms = {1, x(draws), y(draws)}};
    pass.milliseconds = (3 + 0.02 * pass.terms[1] + 0.5 * pass.terms[2]) * (1 + off(draws));
    pass.of_milliseconds = pass.milliseconds;
    all.push_back(pass);
  }
  return all;
}

TEST(FitCosts, FindsWhatPassesWereMadeOf) {
  const std::vector<double> exact = fit_costs(passes(0));
  EXPECT_NEAR(exact[0], 3, 1e-9);
  EXPECT_NEAR(exact[1], 0.02, 1e-12);
  EXPECT_NEAR(exact[2], 0.5, 1e-10);
  const std::vector<double> noisy = fit_costs(passes(0.05));
  EXPECT_NEAR(noisy[1], 0.02, 0.001);
  EXPECT_NEAR(noisy[2], 0.5, 0.04);
}

// Three passes that the machine interrupted.
TEST(FitCosts, InterruptedPassesDoNotCount) {
  std::vector<TimedPass> all = passes(0.002);
  for (const size_t i : {5, 17, 40}) all[i].milliseconds = all[i].of_milliseconds *= 6;
  const std::vector<double> costs = fit_costs(all);
  EXPECT_NEAR(costs[1], 0.02, 0.0001);
  EXPECT_NEAR(costs[2], 0.5, 0.004);
}

// A term that makes passes quicker is none; one that always stands for another adds nothing.
TEST(FitCosts, NoCostIsBelowZero) {
  std::vector<TimedPass> all = passes(0);
  std::mt19937 draws(2);
  std::uniform_real_distribution<double> z(0, 4);
  for (TimedPass& pass : all) {
    pass.terms.push_back(z(draws));
    pass.milliseconds -= 0.1 * pass.terms.back();
    pass.terms.push_back(2 * pass.terms[1]);
  }
  const std::vector<double> costs = fit_costs(all);
  for (const double cost : costs) EXPECT_GE(cost, 0);
  EXPECT_EQ(costs[3], 0);
  EXPECT_NEAR(costs[1] + 2 * costs[4], 0.02, 0.001);
}

TEST(FitCosts, TermsThatNeverOccurCostNothing) {
  std::vector<TimedPass> all = passes(0);
  for (TimedPass& pass : all) pass.terms.push_back(0);
  EXPECT_EQ(fit_costs(all)[3], 0);
  EXPECT_THROW(fit_costs({}), Error);
}

}  // namespace
}  // namespace espalier
