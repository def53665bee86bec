// SPDX-License-Identifier: Apache-2.0
// SCOPE against the vectors of docs/specs/scope.md and tests/support/scope_loops.h.
#include "espalier/policies/scope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "tests/support/array_signals.h"
#include "tests/support/scope_loops.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

Tokens expected(const PromptLayout& prompt, const ArraySignals& arrays, int layer, int64_t number, double alpha,
                const Tokens& pins) {
  std::map<std::pair<int, int>, Tokens> crops;
  for (const Segment& s : prompt.segments)
    for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
      crops[{s.image, s.crop}].push_back(t);
  const Matrix& heads = arrays.class_attention.at(layer);
  const auto look = [&](int64_t t) { return (heads.at(t, 0) + heads.at(t, 1)) / 2; };
  Tokens all;
  for (const auto& [place, crop] : crops) {
    const Tokens kept =
        test::scope_loops(arrays.vision_output, look, crop, std::min(number, std::ssize(crop)), alpha, pins);
    all.insert(all.end(), kept.begin(), kept.end());
  }
  std::ranges::sort(all);
  return all;
}

// Section 5: four patches behind one word.
TEST(Scope, VectorsOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({2, 2}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.vision_output = {{0, 0}, {1, 0}, {1, 0}, {0, 1}, {.6, .8}, {0, 0}};
  arrays.class_attention[2] = {{0}, {.25}, {.5}, {.125}, {.25}, {0}};
  const auto kept = [&](const std::string& options) {
    return kept_at_end(make_policy("scope:" + options), facts(2), prompt, arrays);
  };
  EXPECT_EQ(kept("num_kept=1"), (Tokens{2}));
  EXPECT_EQ(kept("num_kept=2"), (Tokens{2, 4}));
  EXPECT_EQ(kept("num_kept=3"), (Tokens{2, 3, 4}));
  EXPECT_EQ(kept("num_kept=2,alpha=0"), (Tokens{1, 4}));  // the twins tie: the first
}

TEST(Scope, WithNothingToGainTheFirstStay) {
  const auto prompt = LayoutBuilder().image({2, 3}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.vision_output = Matrix(7, 2);
  arrays.class_attention[2] = Matrix(7, 1);
  EXPECT_EQ(kept_at_end(make_policy("scope:num_kept=3"), facts(2), prompt, arrays), (Tokens{0, 1, 2}));
  for (int64_t t = 0; t < 6; ++t) {
    arrays.vision_output.at(t, 0) = 1;
    arrays.class_attention[2].at(t, 0) = t == 4 ? 1 : .5;
  }
  EXPECT_EQ(kept_at_end(make_policy("scope:num_kept=3"), facts(2), prompt, arrays), (Tokens{0, 1, 4}));
}

TEST(Scope, EachCropEqualsTheLoops) {
  struct Case {
    std::string options;
    int layer;
    int64_t number;
    double alpha;
  };
  const std::vector<Case> cases = {{"num_kept=6", 2, 6, 1},
                                   {"num_kept=4,alpha=0", 2, 4, 0},
                                   {"num_kept=5,alpha=0.5", 2, 5, .5},
                                   {"num_kept=5,alpha=2,layer_attention=1", 1, 5, 2}};
  for (uint64_t seed = 1; seed < 6; ++seed)
    for (const bool is_pinned : {false, true}) {
      LayoutBuilder builder;
      builder.text(2, -1).image({5, 5}, 0).text(1, 0).tiled_image({4, 4}, {1, 2}, 1).text(1, 1);
      const Tokens pins = is_pinned ? Tokens{4, 9, 26, 30} : Tokens{};  // three of image 0, one of image 1
      const auto prompt = builder.image({2, 2}, 2).text(2, 2).pin(pins).build(2);
      const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 7, seed);
      for (const Case& c : cases) {
        const auto policy = make_policy("scope:" + c.options);
        EXPECT_EQ(kept_at_end(make_policy(policy->spec()), facts(1), prompt, arrays),
                  expected(*prompt, arrays, c.layer, c.number, c.alpha, pins))
            << c.options << " " << seed;
      }
    }
}

TEST(Scope, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  EXPECT_THROW(test::points_of(make_policy("scope:num_kept=3,layer_attention=4"), facts(2), *prompt), Error);
  ModelFacts model = facts(2);
  model.has_class_token = false;
  EXPECT_THROW(test::points_of(make_policy("scope:num_kept=3"), model, *prompt), Error);
  EXPECT_THROW(make_policy("scope:num_kept=3,alpha=-1"), Error);
  EXPECT_THROW(make_policy("scope"), Error);
}

}  // namespace
}  // namespace espalier
