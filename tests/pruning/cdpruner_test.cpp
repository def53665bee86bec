// SPDX-License-Identifier: Apache-2.0
// CDPruner against the vectors of docs/specs/cdpruner.md and a greedy choice in plain float64 loops.
#include "espalier/policies/cdpruner.h"

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

double cosine(const Matrix& m, int64_t a, int64_t b) {
  return test::cosine(m, a, {m.values.begin() + b * m.cols, m.values.begin() + (b + 1) * m.cols});
}

// Volume² of `picks` by Gram-Schmidt on the scaled unit rows.
double volume(const Matrix& m, const std::map<int64_t, double>& relevance, const Tokens& picks) {
  std::vector<std::vector<double>> basis;
  double product = 1;
  for (const int64_t t : picks) {
    std::vector<double> v(m.values.begin() + t * m.cols, m.values.begin() + (t + 1) * m.cols);
    double norm = 0;
    for (const double x : v) norm += x * x;
    for (double& x : v) x *= relevance.at(t) / std::sqrt(norm);
    for (const auto& b : basis) {
      double dot = 0;
      for (int64_t c = 0; c < m.cols; ++c) dot += b[c] * v[c];
      for (int64_t c = 0; c < m.cols; ++c) v[c] -= dot * b[c];
    }
    double rest = 0;
    for (const double x : v) rest += x * x;
    product *= rest;
    for (double& x : v) x /= std::sqrt(std::max(rest, 1e-300));
    basis.push_back(v);
  }
  return product;
}

Tokens reference(const Matrix& m, const std::map<int64_t, double>& relevance, size_t number) {
  Tokens picks;
  while (picks.size() < number) {
    int64_t best = -1;
    double largest = -1;
    for (const auto& [t, r] : relevance) {
      if (std::find(picks.begin(), picks.end(), t) != picks.end()) continue;
      Tokens with = picks;
      with.push_back(t);
      const double v = volume(m, relevance, with);
      if (v > largest) largest = v, best = t;
    }
    picks.push_back(best);
  }
  std::sort(picks.begin(), picks.end());
  return picks;
}

// Relevance of tokens first .. last against the mean of the tokens `text`.
std::map<int64_t, double> relevance(const Matrix& m, int64_t first, int64_t last, const Tokens& text, int sign) {
  const std::vector<double> mean = test::mean_of(m, text);
  std::map<int64_t, double> r;
  double low = INFINITY, high = -INFINITY;
  for (int64_t t = first; t < last; ++t) {
    r[t] = sign * test::cosine(m, t, mean);
    low = std::min(low, r[t]);
    high = std::max(high, r[t]);
  }
  for (auto& [t, value] : r) value = (value - low + 1e-6) / (high - low);
  return r;
}

TEST(Cdpruner, VectorOfTheSpecification) {
  ArraySignals signals;
  signals.hidden[0] = {{1, 0}, {.98, .2}, {0, 1}, {.7, .7}, {-.2, 1}, {0, 0}};
  const auto prompt = LayoutBuilder().image({1, 5}, 0).text(1, 0).build(0);
  EXPECT_EQ(kept_at_end(make_policy("cdpruner:num_kept=2,relevance=none"), facts(4), prompt, signals), (Tokens{0, 2}));
}

TEST(Cdpruner, EmbeddingEqualsTheLoopsInEachImage) {
  const auto prompt = LayoutBuilder().text(2, -1).image({3, 4}, 0).text(1, 0).image({4, 4}, 1).text(3, 1).build(1);
  for (uint64_t seed = 1; seed < 8; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 1, 1, 9, seed);
    const Matrix& m = signals.hidden.at(0);
    for (const int sign : {1, -1}) {
      Tokens expected = reference(m, relevance(m, 2, 14, {31, 32, 33}, sign), 4);
      const Tokens second = reference(m, relevance(m, 15, 31, {31, 32, 33}, sign), 5);  // a third of 16 is 5.33
      expected.insert(expected.end(), second.begin(), second.end());
      const auto policy = make_policy("cdpruner:keep_ratio=1/3,sign=" + std::to_string(sign));
      EXPECT_EQ(kept_at_end(policy, facts(1), prompt, signals), expected);
      EXPECT_EQ(kept_at_end(make_policy(policy->spec()), facts(1), prompt, signals), expected);
    }
  }
}

// Section 9: E, T and sign -1 give these relevances.
TEST(Cdpruner, ClipRelevanceOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({1, 3}, 0).text(1, 0).build(0);
  ModelFacts model = facts(4);
  model.has_text_tower = true;
  const auto policy = make_policy("cdpruner:num_kept=2");
  PolicyWalk walk(policy, model, prompt);
  ASSERT_EQ(walk.needs().size(), 3U);
  EXPECT_EQ(std::get<Tap>(walk.needs()[1]).what, Tap::What::kClipImage);
  const Matrix projected = {{0, 0, 1}, {1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {0, 0, 1}};
  const std::vector<at::Tensor> signals = {test::to_floats(projected.values, {5, 3}),
                                           test::to_floats({1, 0, 0, 1, 1, 1}, {3, 2}),
                                           test::to_floats({1, 0}, {1, 2})};
  walk.act(signals);
  const auto trace = walk.trace(true);
  ASSERT_EQ(trace[0].scores.size(), 3U);
  EXPECT_NEAR(trace[0].scores[0], .000001, 1e-7);
  EXPECT_NEAR(trace[0].scores[1], 1.000001, 1e-6);
  EXPECT_NEAR(trace[0].scores[2], .292894, 1e-6);
  EXPECT_EQ(trace[0].kept, (Tokens{2, 3}));
}

// Stitched tiles: crops 1 and 2 interleave, and each keeps its own number.
TEST(Cdpruner, TilesArePoolsOfTheirOwn) {
  LayoutBuilder builder;
  builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 2}});
  builder.patches(0, 0, {2, 2}, {0, 0}, 0);
  for (int64_t row = 0; row < 2; ++row)
    builder.patches(0, 1, {1, 2}, {row, 0}, 0).patches(0, 2, {1, 2}, {row, 0}, 0).row_break(0, 0);
  const auto prompt = builder.text(1, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 1, 1, 6, 3);
  const Tokens kept = kept_at_end(make_policy("cdpruner:num_kept=2,relevance=none"), facts(1), prompt, signals);
  const Matrix& m = signals.hidden.at(0);
  Tokens expected;
  for (const Tokens& crop : {Tokens{0, 1, 2, 3}, Tokens{4, 5, 9, 10}, Tokens{6, 7, 11, 12}}) {
    std::map<int64_t, double> all_alike;
    for (const int64_t t : crop) all_alike[t] = 1;
    const Tokens picks = reference(m, all_alike, 2);
    expected.insert(expected.end(), picks.begin(), picks.end());
  }
  std::sort(expected.begin(), expected.end());
  EXPECT_EQ(kept, expected);
  EXPECT_LT(cosine(m, kept[0], kept[1]), 1.0);
}

TEST(Cdpruner, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({1, 3}, 0).text(1, 0).build(0);
  EXPECT_THROW(test::points_of(make_policy("cdpruner:num_kept=2,relevance=clip"), facts(4), *prompt), Error);
  EXPECT_THROW(make_policy("cdpruner:num_kept=2,sign=0"), Error);
  EXPECT_THROW(make_policy("cdpruner:relevance=none"), Error);
}

}  // namespace
}  // namespace espalier
