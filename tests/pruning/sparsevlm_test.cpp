// SPDX-License-Identifier: Apache-2.0
// SparseVLM against the worked vector of docs/specs/sparsevlm.md, section 10, and a plain float64 run of its stages.
#include "espalier/policies/sparsevlm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

// The last point of a walk: what stayed, and what entered at which places.
struct Seen {
  Tokens kept;
  Tokens sequence;  // source indices behind the point
  std::vector<double> added;
  std::vector<double> scores;
};

Seen walk_through(const PolicyPtr& policy, const std::shared_ptr<const PromptLayout>& prompt,
                  const ArraySignals& signals) {
  PolicyWalk walk(policy, facts(8), prompt);
  Seen seen;
  while (const ActPoint* point = walk.next()) {
    std::vector<at::Tensor> answers;
    for (const Signal& s : walk.needs()) answers.push_back(signals.answer(s, *point, walk.layout()));
    const auto outcome = walk.act(answers);
    seen.added = outcome.applied.has_new_tokens ? test::to_doubles(outcome.applied.new_vectors) : std::vector<double>{};
  }
  const auto points = walk.trace(true);
  if (!points.empty()) {
    seen.kept = points.back().kept;
    seen.scores.assign(points.back().scores.begin(), points.back().scores.end());
  }
  seen.sequence = test::to_vector(walk.layout().source_index);
  return seen;
}

TEST(Sparsevlm, WorkedStage) {
  const double b[12] = {.02, .30, .05, .01, .20, .04, .03, .10, .06, .02, .08, .01};
  const auto prompt = LayoutBuilder().image({3, 4}, 0).text(1, 0).build(0);
  Matrix first(13, 13), second(13, 13), hidden(13, 3);
  for (int64_t j = 0; j < 12; ++j) {
    first.at(12, j) = b[j];
    second.at(12, j) = b[j] / 2;
    hidden.at(j, 0) = static_cast<double>(j % 4);
    hidden.at(j, 1) = static_cast<double>(j / 4);
    hidden.at(j, 2) = 1;
  }
  ArraySignals signals;
  signals.attention[2] = {first, second};
  signals.hidden[0] = signals.hidden[3] = hidden;
  const auto seen = walk_through(make_policy("sparsevlm:num_kept=4,layers=3,tau=1/2,theta=0.3"), prompt, signals);
  for (size_t j = 0; j < 12; ++j) EXPECT_NEAR(seen.scores.at(j), 0.75 * b[j], 1e-7);
  EXPECT_EQ(seen.kept, (Tokens{1, 4, 7, 10}));
  // {2, 6} and {0, 5, 8}; which is first is left to the centres' scores, so look at both as a set.
  ASSERT_EQ(seen.added.size(), 6U);
  const size_t even = seen.added[0] > 1 ? 0 : 3, other = 3 - even;
  const double expected[2][3] = {{2, .5, 1}, {1. / 3, 1, 1}};
  for (size_t c = 0; c < 3; ++c) {
    EXPECT_NEAR(seen.added[even + c], expected[0][c], 1e-6);
    EXPECT_NEAR(seen.added[other + c], expected[1][c], 1e-6);
  }
}

TEST(Sparsevlm, WorkedRaters) {
  const auto prompt = LayoutBuilder().image({2, 2}, 0).text(3, 0).build(0);
  ArraySignals signals = test::random_signals(7, 8, 2, 2, 3);
  signals.hidden[0] = {{1, 0}, {0, 1}, {1, 1}, {0, 0}, {2, 0}, {0, 0}, {0, 1}};
  const auto seen = walk_through(make_policy("sparsevlm:num_kept=2,layers=3,recycle=false"), prompt, signals);
  const auto& heads = signals.attention.at(2);  // rated by text 0 alone, which is row 4
  for (int64_t j = 0; j < 4; ++j) EXPECT_NEAR(seen.scores.at(j), (heads[0].at(4, j) + heads[1].at(4, j)) / 2, 1e-7);
  // Alike: all of them rate.
  for (int64_t t = 4; t < 7; ++t) signals.hidden[0].at(t, 0) = signals.hidden[0].at(t, 1) = 0;
  const auto all = walk_through(make_policy("sparsevlm:num_kept=2,layers=3,recycle=false"), prompt, signals);
  for (int64_t j = 0; j < 4; ++j) {
    double mean = 0;
    for (int64_t r = 4; r < 7; ++r) mean += (heads[0].at(r, j) + heads[1].at(r, j)) / 6;
    EXPECT_NEAR(all.scores.at(j), mean, 1e-7);
  }
}

// ---- one stage in float64 ----

struct Stage {
  Tokens kept;
  std::vector<double> added;
  Tokens centres;
};

std::vector<Tokens> members_of(const Matrix& x, const Tokens& rows, size_t number, Tokens* centres) {
  const size_t m = rows.size();
  std::vector<std::vector<double>> d(m, std::vector<double>(m));
  double largest = 0;
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < m; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < x.cols; ++c) sum += std::pow(x.at(rows[i], c) - x.at(rows[j], c), 2);
      d[i][j] = std::sqrt(sum / static_cast<double>(x.cols));
      largest = std::max(largest, d[i][j]);
    }
  std::vector<double> density(m), score(m);
  for (size_t i = 0; i < m; ++i) {
    std::vector<double> near = d[i];
    std::sort(near.begin(), near.end());
    for (size_t j = 0; j < number; ++j) density[i] += near[j] * near[j] / static_cast<double>(number);
    density[i] = std::exp(-density[i]);
  }
  for (size_t i = 0; i < m; ++i) {
    double distance = largest;
    for (size_t j = 0; j < m; ++j)
      if (density[j] > density[i] || (density[j] == density[i] && j < i)) distance = std::min(distance, d[i][j]);
    score[i] = density[i] * distance;
  }
  std::vector<size_t> order(m);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return score[a] > score[b]; });
  order.resize(number);
  std::vector<Tokens> members(number);
  for (size_t i = 0; i < m; ++i) {
    size_t best = 0;
    for (size_t c = 0; c < number; ++c)
      if (d[i][order[c]] < d[i][order[best]]) best = c;
    for (size_t c = 0; c < number; ++c)
      if (order[c] == i) best = c;
    members[best].push_back(rows[i]);
  }
  for (const size_t i : order) centres->push_back(rows[i]);
  return members;
}

Stage reference(const PromptLayout& prompt, const ArraySignals& signals, int layer, int64_t k) {
  const Tokens image = test::image_tokens_of(prompt), image_of = test::to_vector(prompt.image);
  Tokens text;
  for (int64_t t = image.back() + 1; t < prompt.num_tokens; ++t) text.push_back(t);
  const Matrix &start = signals.hidden.at(0), &hidden = signals.hidden.at(layer);
  std::map<int64_t, double> rating;
  for (const int64_t v : image) {
    double sum = 0;
    std::map<int64_t, double> e;
    for (const int64_t t : text) {
      double dot = 0;
      for (int64_t c = 0; c < start.cols; ++c) dot += start.at(v, c) * start.at(t, c);
      sum += e[t] = std::exp(dot);
    }
    for (const int64_t t : text) rating[t] += e[t] / sum / static_cast<double>(image.size());
  }
  std::map<int64_t, double> score;
  for (const int64_t t : text)
    if (rating[t] > 1.0 / static_cast<double>(text.size()))
      for (const int64_t v : image)
        for (const Matrix& head : signals.attention.at(layer - 1)) score[v] += head.at(t, v);
  Tokens order = image;
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return score[a] > score[b]; });
  Stage stage{Tokens(order.begin(), order.begin() + k), {}, {}};
  std::sort(stage.kept.begin(), stage.kept.end());
  const int64_t dropped = std::ssize(order) - k;
  const Tokens candidates(order.begin() + k, order.begin() + k + std::min(dropped, dropped * 3 / 10 + 1));
  for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
    Tokens own;
    for (const int64_t t : candidates)
      if (image_of[t] == i) own.push_back(t);
    if (own.empty()) continue;
    const size_t number = std::min(own.size(), own.size() / 10 + 1);
    for (const Tokens& members : members_of(hidden, own, number, &stage.centres)) {
      const std::vector<double> mean = test::mean_of(hidden, members);
      stage.added.insert(stage.added.end(), mean.begin(), mean.end());
    }
  }
  return stage;
}

TEST(Sparsevlm, ImagesClusterTheirOwnAgainstALoop) {
  const auto prompt =
      LayoutBuilder().text(2, -1).image({8, 9}, 0).text(3, 0).image({1, 2}, 1).image({6, 6}, 1).text(6, 1).build(1);
  for (uint64_t seed = 1; seed < 12; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, seed);
    for (const int64_t k : {0, 5, 40, 108}) {
      const Stage expected = reference(*prompt, signals, 5, k);
      const Seen seen = walk_through(make_policy("sparsevlm:layers=5,num_kept=" + std::to_string(k)), prompt, signals);
      EXPECT_EQ(seen.kept, expected.kept);
      ASSERT_EQ(seen.added.size(), expected.added.size());
      for (size_t i = 0; i < seen.added.size(); ++i) EXPECT_NEAR(seen.added[i], expected.added[i], 1e-5);
      // Behind the image's kept tokens, before the text that follows it.
      Tokens sequence;
      const Tokens image_of = test::to_vector(prompt->image);
      for (const Segment& s : prompt->segments) {
        for (int64_t t = s.begin; t < s.end; ++t)
          if (s.image < 0 || std::binary_search(expected.kept.begin(), expected.kept.end(), t)) sequence.push_back(t);
        for (const int64_t c : expected.centres)
          if (s.image >= 0 && image_of[c] == s.image) sequence.push_back(c);
      }
      EXPECT_EQ(seen.sequence, sequence);
    }
  }
}

// Section 10: three raters whose attention has rank 2, twelve image tokens.
TEST(Sparsevlm, RankRules) {
  const auto prompt = LayoutBuilder().image({3, 4}, 0).text(3, 0).build(0);
  ArraySignals arrays;
  arrays.hidden[0] = Matrix(15, 3);  // all alike: every text token rates
  arrays.hidden[3] = test::random_matrix(15, 3, 4);
  Matrix a(15, 15);
  for (int64_t j = 0; j < 12; ++j) {
    a.at(12, j) = 0.01 * static_cast<double>(j + 1);
    a.at(13, j) = 0.02 * static_cast<double>((5 * j) % 12);
    a.at(14, j) = a.at(12, j) + a.at(13, j);
  }
  arrays.attention[2] = {a};
  const auto kept = [&](const std::string& options) {
    return walk_through(make_policy("sparsevlm:layers=3,recycle=false," + options), prompt, arrays).kept.size();
  };
  EXPECT_EQ(kept("rule=rank_lambda"), 7U);
  EXPECT_EQ(kept("rule=rank_scale,scale=2.5,bias=1"), 6U);
  EXPECT_EQ(kept("rule=rank_lambda,lambda=1"), 2U);
  EXPECT_EQ(kept("rule=rank_lambda,lambda=0"), 12U);
  EXPECT_EQ(kept("rule=rank_scale"), 12U);  // 27 of 12
  EXPECT_EQ(kept("rule=rank_scale,scale=0,bias=-3"), 0U);
  EXPECT_EQ(kept("rule=rank_scale,scale=0,min_per_image=5"), 5U);
  const Seen best = walk_through(make_policy("sparsevlm:layers=3,recycle=false,rule=rank_lambda"), prompt, arrays);
  const Seen fixed = walk_through(make_policy("sparsevlm:layers=3,recycle=false,num_kept=7"), prompt, arrays);
  EXPECT_EQ(best.kept, fixed.kept);
  for (size_t i = 0; i < 12; ++i) EXPECT_NEAR(best.scores[i], fixed.scores[i], 1e-7);
  EXPECT_THROW(make_policy("sparsevlm:rule=rank_lambda,num_kept=7"), Error);
  EXPECT_THROW(make_policy("sparsevlm:rule=rank_lambda,lambda=2"), Error);
  EXPECT_EQ(make_policy("sparsevlm:rule=rank_scale,scale=9,bias=6")->spec(),
            "sparsevlm:rule=rank_scale,scale=9,bias=6");
}

// Averages of an image with tiles stand behind its last row break, not inside the tiles.
TEST(Sparsevlm, AveragesStandBehindTheirImage) {
  LayoutBuilder builder;
  builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 2}, .crop_boxes = {}});
  builder.patches(0, 0, {2, 2}, {0, 0}, 0);
  for (int64_t row = 0; row < 2; ++row)
    builder.patches(0, 1, {1, 2}, {row, 0}, 0).patches(0, 2, {1, 2}, {row, 0}, 0).row_break(0, 0);
  const auto prompt = builder.text(3, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 3);
  const Seen seen = walk_through(make_policy("sparsevlm:layers=5,num_kept=6,row_breaks=follow"), prompt, signals);
  const int64_t last_text = prompt->num_tokens - 1;
  ASSERT_GT(seen.sequence.size(), 4U);
  const auto average = seen.sequence.end() - 4;  // in front of the three words
  EXPECT_EQ(seen.sequence.back(), last_text);
  EXPECT_FALSE(std::ranges::binary_search(seen.kept, *average));
  EXPECT_EQ(test::to_vector(prompt->kind)[static_cast<size_t>(*average)],
            static_cast<int64_t>(Segment::Kind::kPatches));  // no row break: they stand before it
}

TEST(Sparsevlm, LaterStagesTakeAveragesForTokens) {
  const auto prompt = LayoutBuilder().text(2, -1).image({8, 9}, 0).text(6, 0).build(0);
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 3);
  // 72 -> 30 + floor(13 / 10) + 1 = 32 -> 20 + 1 -> 10 + 1; candidates of 42, 12 and 11: 13, 4 and 4.
  PolicyWalk walk(make_policy("sparsevlm:layers=2:4:6,num_kept=30:20:10"), facts(8), prompt);
  Tokens sizes;
  while (const ActPoint* point = walk.next()) {
    std::vector<at::Tensor> answers;
    for (const Signal& s : walk.needs()) answers.push_back(signals.answer(s, *point, walk.layout()));
    walk.act(answers);
    sizes.push_back(walk.layout().num_image_tokens());
  }
  EXPECT_EQ(sizes, (Tokens{72, 32, 21, 11}));
}

TEST(Sparsevlm, StagesThatHaveNoMoreThanTheyKeepDoNothing) {
  const auto prompt = LayoutBuilder().text(2, -1).image({2, 3}, 0).text(3, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy("sparsevlm:num_kept=9:9:9"), facts(32), *prompt).empty());
  EXPECT_TRUE(test::points_of(make_policy("sparsevlm:keep_ratio=1:1:1"), facts(32), *prompt).empty());
  EXPECT_EQ(test::points_of(make_policy("sparsevlm:num_kept=9:4:4,recycle=false"), facts(32), *prompt),
            (std::vector<ActPoint>{{Site::kProjectorOutput}, {Site::kBeforeLayer, 7}}));
  EXPECT_EQ(test::points_of(make_policy("sparsevlm:num_kept=300:200:110"), facts(32),
                            *LayoutBuilder().text(1, 0).image({24, 24}, 0).text(1, 0).build(0)),
            (std::vector<ActPoint>{
                {Site::kProjectorOutput}, {Site::kBeforeLayer, 3}, {Site::kBeforeLayer, 7}, {Site::kBeforeLayer, 16}}));
}

TEST(Sparsevlm, WhatCannotBeIsRefusedAndSpecsComeBack) {
  const auto silent = LayoutBuilder().text(2, -1).image({2, 3}, 0).build(0);
  EXPECT_THROW(test::points_of(make_policy("sparsevlm:keep_ratio=1/2"), facts(8), *silent), Error);
  EXPECT_THROW(make_policy("sparsevlm"), Error);
  EXPECT_THROW(make_policy("sparsevlm:num_kept=3:4:5"), Error);
  EXPECT_THROW(make_policy("sparsevlm:keep_ratio=1/2,tau=2"), Error);
  for (const char* spec : {"sparsevlm:keep_ratio=1/2", "sparsevlm:num_kept=3:2,layers=2:4,recycle=false"})
    EXPECT_EQ(make_policy(spec)->spec(), spec);
}

}  // namespace
}  // namespace espalier
