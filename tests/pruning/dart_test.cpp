// SPDX-License-Identifier: Apache-2.0
// DART against the worked vector of docs/specs/dart.md, section 9, a plain float64 loop, and its invariants.
#include "espalier/policies/dart.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

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

ArraySignals worked_vector() {
  ArraySignals signals;
  signals.final_norm[2] = {{1, 0}, {.9, .1}, {0, 1}, {-1, 0}, {.5, .5}, {0, -1}, {1, 1}, {-.5, .5}};
  signals.key[1] = {{1, 1}, {3, 0}, {0, 1}, {1, 0}, {2, 2}, {0, 0}, {5, 0}, {0, 1}};
  signals.kv_heads = 1;
  return signals;
}

TEST(Dart, WorkedVector) {
  const auto prompt = LayoutBuilder().image({2, 3}, 0).text(2, 0).build(0);
  const auto kept = [&](int64_t number, int image_pivots, int text_pivots) {
    return kept_at_end(make_dart({.amount = {.keep_ratio = {}, .num_kept = number},
                                  .image_pivots = image_pivots,
                                  .text_pivots = text_pivots}),
                       facts(4), prompt, worked_vector());
  };
  EXPECT_EQ(kept(4, 1, 1), (Tokens{0, 3, 4, 5}));
  EXPECT_EQ(kept(1, 1, 1), (Tokens{4}));
  EXPECT_EQ(kept(2, 4, 4), (Tokens{1, 4}));  // not more than the pivots: the best of them
  EXPECT_EQ(kept(3, 4, 4), (Tokens{0, 1, 4}));
  EXPECT_TRUE(kept(0, 4, 4).empty());
}

// Image by image, pivot by pivot, in float64.
Tokens reference(const PromptLayout& prompt, const ArraySignals& signals, const std::vector<int64_t>& budgets,
                 int layer, int64_t image_pivots, int64_t text_pivots) {
  const Matrix &hidden = signals.final_norm.at(layer), &key = signals.key.at(layer - 1);
  const auto norm = [&](int64_t t) {
    double sum = 0;
    for (int64_t c = 0; c < key.cols; ++c) sum += std::abs(key.at(t, c));
    return sum;
  };
  const auto row = [&](int64_t t) {
    std::vector<double> v;
    for (int64_t c = 0; c < hidden.cols; ++c) v.push_back(hidden.at(t, c));
    return v;
  };
  const auto longest = [&](Tokens tokens, int64_t number) {
    std::stable_sort(tokens.begin(), tokens.end(), [&](int64_t a, int64_t b) { return norm(a) > norm(b); });
    tokens.resize(std::min<size_t>(tokens.size(), number));
    return tokens;
  };
  Tokens text;
  for (const Segment& s : prompt.segments) {
    if (s.kind != Segment::Kind::kText) text.clear();
    for (int64_t t = s.begin; t < s.end && s.kind == Segment::Kind::kText; ++t) text.push_back(t);
  }
  std::set<int64_t> all_kept;
  for (const Segment& s : prompt.segments) {
    if (s.kind != Segment::Kind::kPatches) continue;
    Tokens candidates(s.end - s.begin);
    std::iota(candidates.begin(), candidates.end(), s.begin);
    int64_t budget = budgets[s.image];
    Tokens pivots = longest(candidates, std::min(budget, image_pivots));
    for (const int64_t t : pivots) {
      all_kept.insert(t);
      std::erase(candidates, t);
    }
    budget -= std::ssize(pivots);
    for (const int64_t t : longest(text, text_pivots)) pivots.push_back(t);
    const int64_t voters = std::ssize(pivots);
    for (int64_t i = 0; i < voters; ++i) {
      const std::vector<double> pivot = row(pivots[i]);
      std::stable_sort(candidates.begin(), candidates.end(), [&](int64_t a, int64_t b) {
        return test::cosine(hidden, a, pivot) < test::cosine(hidden, b, pivot);
      });
      for (int64_t share = budget / voters + (i < budget % voters); share > 0; --share) {
        all_kept.insert(candidates.front());
        candidates.erase(candidates.begin());
      }
      std::sort(candidates.begin(), candidates.end());
    }
  }
  return {all_kept.begin(), all_kept.end()};
}

TEST(Dart, ImagesOfDifferentSizesAgainstALoop) {
  const auto prompt =
      LayoutBuilder().text(2, -1).image({4, 5}, 0).text(3, 0).image({1, 3}, 1).image({6, 6}, 1).text(3, 1).build(1);
  for (uint64_t seed = 1; seed < 20; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 1, 6, seed);
    EXPECT_EQ(kept_at_end(make_policy("dart:keep_ratio=1/2"), facts(4), prompt, signals),
              reference(*prompt, signals, {10, 2, 18}, 2, 4, 4));
    EXPECT_EQ(
        kept_at_end(make_policy("dart:num_kept=11,layer=3,image_pivots=2,text_pivots=1"), facts(4), prompt, signals),
        reference(*prompt, signals, {11, 3, 11}, 3, 2, 1));
    EXPECT_EQ(kept_at_end(make_policy("dart:num_kept=11,image_pivots=0"), facts(4), prompt, signals),
              reference(*prompt, signals, {11, 3, 11}, 2, 0, 4));
    // keep_ratio leaves one token at least
    EXPECT_EQ(kept_at_end(make_policy("dart:keep_ratio=1/20"), facts(4), prompt, signals),
              reference(*prompt, signals, {1, 1, 2}, 2, 4, 4));
  }
}

TEST(Dart, LengthsOfStatesAndOrderOfHeadsDoNotMatter) {
  const auto prompt = LayoutBuilder().text(1, 0).image({4, 5}, 0).text(3, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 1, 6, 5);
  ArraySignals other = signals;
  for (auto& [layer, m] : other.final_norm)
    for (int64_t t = 0; t < m.rows; ++t)
      for (int64_t c = 0; c < m.cols; ++c) m.at(t, c) *= static_cast<double>(t + 1);
  for (auto& [layer, m] : other.key)
    for (int64_t t = 0; t < m.rows; ++t)
      for (int64_t c = 0; c < 3; ++c) std::swap(m.at(t, c), m.at(t, c + 3));
  for (int64_t number = 1; number < 20; ++number) {
    const auto policy = make_dart({.amount = {.keep_ratio = {}, .num_kept = number}});
    const Tokens kept = kept_at_end(policy, facts(4), prompt, signals);
    EXPECT_EQ(std::ssize(kept), number);
    EXPECT_EQ(kept, kept_at_end(policy, facts(4), prompt, other));
  }
}

// A copy of the pivot is the last candidate that the pivot would take.
TEST(Dart, ADuplicateOfThePivotLeavesFirst) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(1, 0).build(0);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 1, 6, 8);
  for (int64_t c = 0; c < 6; ++c) {
    signals.key[1].at(3, c) = 100;  // the pivot
    signals.final_norm[2].at(6, c) = signals.final_norm[2].at(3, c);
  }
  const Tokens kept =
      kept_at_end(make_policy("dart:num_kept=7,image_pivots=1,text_pivots=0"), facts(4), prompt, signals);
  EXPECT_EQ(kept, (Tokens{1, 2, 3, 4, 5, 7, 8}));
}

TEST(Dart, PinnedTokensStayAndAreNoPivots) {
  const auto prompt = LayoutBuilder().text(1, 0).image({2, 4}, 0).text(1, 0).pin({2, 7}).build(0);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 4, 1, 6, 8);
  for (int64_t c = 0; c < 6; ++c) signals.key[1].at(2, c) = signals.key[1].at(5, c) = 100;
  EXPECT_EQ(kept_at_end(make_policy("dart:num_kept=3"), facts(4), prompt, signals), (Tokens{2, 5, 7}));
}

TEST(Dart, WhatCannotBeIsRefused) {
  const auto silent = LayoutBuilder().text(1, 0).image({2, 4}, 0).build(0);
  EXPECT_THROW(test::points_of(make_policy("dart:keep_ratio=1/2,image_pivots=0"), facts(4), *silent), Error);
  EXPECT_THROW(make_policy("dart:keep_ratio=1/2,image_pivots=0,text_pivots=0"), Error);
  EXPECT_THROW(make_policy("dart:keep_ratio=1/2,layer=0"), Error);
  EXPECT_THROW(test::points_of(make_policy("dart:keep_ratio=1/2,layer=5"), facts(4), *silent), Error);
  EXPECT_TRUE(test::points_of(make_policy("dart:keep_ratio=1/2,layer=4"), facts(4), *silent).empty());
  EXPECT_EQ(make_policy("dart:keep_ratio=1/2,layer=3,text_pivots=2")->spec(),
            "dart:keep_ratio=1/2,layer=3,text_pivots=2");
}

}  // namespace
}  // namespace espalier
