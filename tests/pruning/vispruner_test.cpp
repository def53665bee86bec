// SPDX-License-Identifier: Apache-2.0
// VisPruner against the vectors of docs/specs/vispruner.md and tests/support/vispruner_loops.h.
#include "espalier/policies/vispruner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "tests/support/array_signals.h"
#include "tests/support/vispruner_loops.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

// Patches of each crop, ascending.
std::map<std::pair<int, int>, Tokens> crops(const PromptLayout& prompt) {
  std::map<std::pair<int, int>, Tokens> found;
  for (const Segment& s : prompt.segments)
    for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
      found[{s.image, s.crop}].push_back(t);
  return found;
}

Tokens expected(const PromptLayout& prompt, const ArraySignals& arrays, int layer, int64_t number, double ratio,
                int64_t per_round, const Tokens& pins = {}) {
  Tokens all;
  const Matrix& heads = arrays.class_attention.at(layer);
  const auto look = [&](int64_t t) { return (heads.at(t, 0) + heads.at(t, 1)) / 2; };
  for (const auto& [place, crop] : crops(prompt)) {
    Tokens own;
    std::ranges::copy_if(pins, std::back_inserter(own), [&](int64_t t) { return std::ranges::count(crop, t) > 0; });
    const Tokens kept = test::vispruner_loops(arrays.vision_output, look, crop, std::min(number, std::ssize(crop)),
                                              ratio, per_round, own);
    all.insert(all.end(), kept.begin(), kept.end());
  }
  std::ranges::sort(all);
  return all;
}

// Section 5: eight patches behind one word.
TEST(Vispruner, VectorOfTheSpecification) {
  const auto prompt = LayoutBuilder().text(1, -1).image({2, 4}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.class_attention[2] = Matrix(10, 1);
  for (double attention = 8; const int64_t patch : {5, 0, 3, 1, 7, 2, 6, 4})
    arrays.class_attention[2].at(1 + patch, 0) = attention--;
  arrays.vision_output = {{0, 0}, {1, 1}, {1, 0}, {0, -1}, {1, 0}, {.6, .8}, {1, 1}, {-1, 0}, {0, 1}, {0, 0}};
  EXPECT_EQ(kept_at_end(make_policy("vispruner:num_kept=4,per_round=1"), facts(2), prompt, arrays),
            (Tokens{1, 3, 5, 6}));  // patches 0, 2, 4 and 5
  EXPECT_EQ(kept_at_end(make_policy("vispruner:num_kept=4,important_ratio=1"), facts(2), prompt, arrays),
            (Tokens{1, 2, 4, 6}));
}

// All alike: the first stay among the important ones, and the first of the list leave in each round.
TEST(Vispruner, TiesGoToTheFirst) {
  const auto prompt = LayoutBuilder().image({2, 4}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.class_attention[2] = Matrix(9, 1);
  arrays.vision_output = Matrix(9, 2);
  for (int64_t t = 0; t < 8; ++t) arrays.vision_output.at(t, 0) = 1;
  EXPECT_EQ(kept_at_end(make_policy("vispruner:num_kept=4"), facts(2), prompt, arrays), (Tokens{0, 1, 5, 7}));
}

TEST(Vispruner, EachCropEqualsTheLoops) {
  struct Case {
    std::string options;
    int layer;
    int64_t number;
    double ratio;
    int64_t per_round;
  };
  const std::vector<Case> cases = {{"num_kept=6", 2, 6, .5, 8},
                                   {"num_kept=6,per_round=1", 2, 6, .5, 1},
                                   {"num_kept=7,per_round=3", 2, 7, .5, 3},
                                   {"num_kept=5,important_ratio=0", 2, 5, 0, 8},
                                   {"num_kept=5,important_ratio=4/5,per_round=2,layer_attention=1", 1, 5, .8, 2}};
  for (uint64_t seed = 1; seed < 6; ++seed)
    for (const bool is_pinned : {false, true}) {
      LayoutBuilder builder;
      builder.text(2, -1).image({5, 5}, 0).text(1, 0).tiled_image({4, 4}, {1, 2}, 1).text(1, 1);
      const Tokens pins =
          is_pinned ? Tokens{4, 9, 17, 26, 30} : Tokens{};  // four of image 0, one of the full view of image 1
      const auto prompt = builder.image({2, 2}, 2).text(2, 2).pin(pins).build(2);
      const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 7, seed);
      for (const Case& c : cases) {
        const auto policy = make_policy("vispruner:" + c.options);
        EXPECT_EQ(kept_at_end(make_policy(policy->spec()), facts(1), prompt, arrays),
                  expected(*prompt, arrays, c.layer, c.number, c.ratio, c.per_round, pins))
            << c.options << " " << seed;
      }
    }
}

TEST(Vispruner, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  EXPECT_THROW(test::points_of(make_policy("vispruner:num_kept=3,layer_attention=4"), facts(2), *prompt), Error);
  ModelFacts model = facts(2);
  model.has_class_token = false;
  EXPECT_THROW(test::points_of(make_policy("vispruner:num_kept=3"), model, *prompt), Error);
  EXPECT_THROW(make_policy("vispruner:num_kept=3,important_ratio=3/2"), Error);
  EXPECT_THROW(make_policy("vispruner:num_kept=3,per_round=0"), Error);
  EXPECT_THROW(make_policy("vispruner"), Error);
}

}  // namespace
}  // namespace espalier
