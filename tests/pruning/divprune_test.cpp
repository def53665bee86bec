// SPDX-License-Identifier: Apache-2.0
// DivPrune against the vectors of docs/specs/divprune.md and a farthest-first choice in plain float64 loops.
#include "espalier/policies/divprune.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

double distance(const Matrix& m, int64_t a, int64_t b, const std::string& kind) {
  double sum = 0, dot = 0, aa = 0, bb = 0;
  for (int64_t c = 0; c < m.cols; ++c) {
    const double x = m.at(a, c), y = m.at(b, c);
    sum += kind == "l1" ? std::abs(x - y) : (x - y) * (x - y);
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  if (kind == "l1") return sum;
  return kind == "l2" ? std::sqrt(sum) : 1 - dot / std::max(std::sqrt(aa * bb), 1e-24);
}

// Tokens first .. last, ascending.
Tokens reference(const Matrix& m, int64_t first, int64_t last, size_t number, const std::string& kind) {
  Tokens picks;
  while (picks.size() < number) {
    int64_t best = -1;
    double farthest = -1;
    for (int64_t i = first; i < last; ++i) {
      if (std::find(picks.begin(), picks.end(), i) != picks.end()) continue;
      double nearest = INFINITY;
      for (int64_t j = first; j < last; ++j) {
        const bool counts = picks.empty() ? j != i : std::find(picks.begin(), picks.end(), j) != picks.end();
        if (counts) nearest = std::min(nearest, distance(m, i, j, kind));
      }
      if (nearest > farthest) farthest = nearest, best = i;
    }
    picks.push_back(best);
  }
  std::sort(picks.begin(), picks.end());
  return picks;
}

TEST(Divprune, VectorsOfTheSpecification) {
  ArraySignals signals;
  signals.hidden[0] = {{1, 0}, {1, 0}, {0, 1}, {-1, 0}, {0, -1}, {1, 1}, {0, 0}};
  const auto prompt = LayoutBuilder().image({2, 3}, 0).text(1, 0).build(0);
  EXPECT_EQ(kept_at_end(make_policy("divprune:num_kept=4"), facts(4), prompt, signals), (Tokens{0, 2, 3, 4}));
  signals.hidden[0] = {{3, 0}, {3, 1}, {.5, 2}, {-1, -1}, {2, 2}, {-3, .5}, {0, 0}};
  EXPECT_EQ(kept_at_end(make_policy("divprune:num_kept=3"), facts(4), prompt, signals), (Tokens{3, 4, 5}));
  EXPECT_EQ(kept_at_end(make_policy("divprune:num_kept=4"), facts(4), prompt, signals), (Tokens{0, 3, 4, 5}));
  signals.hidden[0] = Matrix(7, 2);
  EXPECT_EQ(kept_at_end(make_policy("divprune:num_kept=3"), facts(4), prompt, signals), (Tokens{0, 1, 2}));
}

TEST(Divprune, EachImageEqualsTheLoops) {
  const auto prompt = LayoutBuilder().text(2, -1).image({5, 6}, 0).text(1, 0).image({4, 4}, 1).text(2, 1).build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 1, 1, 7, seed);
    for (const std::string kind : {"cosine", "l1", "l2"}) {
      Tokens expected = reference(signals.hidden.at(0), 2, 32, 12, kind);  // 2/5 of 30 and 6.4 of 16
      const Tokens second = reference(signals.hidden.at(0), 33, 49, 6, kind);
      expected.insert(expected.end(), second.begin(), second.end());
      const auto policy = make_policy("divprune:keep_ratio=2/5,distance=" + kind);
      EXPECT_EQ(kept_at_end(policy, facts(1), prompt, signals), expected);
      EXPECT_EQ(kept_at_end(make_policy(policy->spec()), facts(1), prompt, signals), expected);
    }
  }
}

TEST(Divprune, WrongOptionsAreRefused) {
  EXPECT_THROW(make_policy("divprune"), Error);
  EXPECT_THROW(make_policy("divprune:keep_ratio=1/2,distance=l3"), Error);
  EXPECT_THROW(make_divprune({.amount = {.keep_ratio = Fraction{3, 2}}}), Error);
}

}  // namespace
}  // namespace espalier
