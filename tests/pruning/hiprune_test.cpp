// SPDX-License-Identifier: Apache-2.0
// HiPrune against the vectors of docs/specs/hiprune.md and tests/support/hiprune_loops.h.
#include "espalier/policies/hiprune.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "tests/support/array_signals.h"
#include "tests/support/hiprune_loops.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::kept_at_end;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

Tokens expected(const PromptLayout& prompt, const ArraySignals& arrays, int object, int deep, int64_t number,
                double alpha, const Tokens& pins = {}) {
  const Tokens row = test::to_vector(prompt.grid_row), col = test::to_vector(prompt.grid_col);
  const auto look = [&](int layer) {
    return [&heads = arrays.class_attention.at(layer)](int64_t t) { return (heads.at(t, 0) + heads.at(t, 1)) / 2; };
  };
  const test::HipruneLooks looks{look(object), look(deep), [&](int64_t t) { return row[static_cast<size_t>(t)]; },
                                 [&](int64_t t) { return col[static_cast<size_t>(t)]; }};
  std::map<std::pair<int, int>, Tokens> crops;
  for (const Segment& s : prompt.segments)
    for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
      crops[{s.image, s.crop}].push_back(t);
  Tokens all;
  for (const auto& [place, crop] : crops) {
    const Tokens kept = test::hiprune_loops(looks, crop, std::min(number, std::ssize(crop)), alpha, pins);
    all.insert(all.end(), kept.begin(), kept.end());
  }
  std::ranges::sort(all);
  return all;
}

// Section 5: nine patches; layer 0 looks at one of them most, layer 2 at the last ones.
TEST(Hiprune, VectorsOfTheSpecification) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  const auto kept = [&](int64_t most, const std::string& options) {
    ArraySignals arrays;
    arrays.class_attention[0] = arrays.class_attention[2] = Matrix(10, 1);
    for (int64_t t = 0; t < 9; ++t) {
      arrays.class_attention[0].at(t, 0) = t == most ? 16 : static_cast<double>(t % 4);
      arrays.class_attention[2].at(t, 0) = static_cast<double>(t);
    }
    return kept_at_end(make_policy("hiprune:" + options), facts(2), prompt, arrays);
  };
  EXPECT_EQ(kept(4, "num_kept=6,alpha=5/6"), (Tokens{1, 3, 4, 5, 7, 8}));
  EXPECT_EQ(kept(0, "num_kept=5,alpha=1"), (Tokens{0, 1, 3, 7, 8}));
  EXPECT_EQ(kept(2, "num_kept=5,alpha=1"), (Tokens{1, 2, 5, 7, 8}));  // 3 begins the next row
  EXPECT_EQ(kept(4, "num_kept=4,alpha=1"), (Tokens{1, 3, 4, 7}));     // of 1 and 5, equal, the first
  EXPECT_EQ(kept(4, "num_kept=3"), (Tokens{6, 7, 8}));                // no anchor
}

TEST(Hiprune, TiesGoToTheFirst) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  ArraySignals arrays;
  arrays.class_attention[0] = arrays.class_attention[2] = Matrix(10, 1);
  EXPECT_EQ(kept_at_end(make_policy("hiprune:num_kept=5,alpha=1"), facts(2), prompt, arrays), (Tokens{0, 1, 2, 3, 4}));
}

TEST(Hiprune, EachCropEqualsTheLoops) {
  struct Case {
    std::string options;
    int object, deep;
    int64_t number;
    double alpha;
  };
  const std::vector<Case> cases = {{"num_kept=6", 0, 2, 6, .1},
                                   {"num_kept=9,alpha=1/2", 0, 2, 9, .5},
                                   {"num_kept=4,alpha=1", 0, 2, 4, 1},
                                   {"num_kept=13,alpha=1", 0, 2, 13, 1},
                                   {"num_kept=9,alpha=3/5,layer_object=1,layer_deep=3", 1, 3, 9, .6}};
  for (uint64_t seed = 1; seed < 6; ++seed)
    for (const bool is_pinned : {false, true}) {
      LayoutBuilder builder;
      builder.text(2, -1).image({5, 5}, 0).text(1, 0).tiled_image({4, 4}, {1, 2}, 1).text(1, 1);
      const Tokens pins = is_pinned ? Tokens{4, 9, 26, 30} : Tokens{};  // three of image 0, one of image 1
      const auto prompt = builder.image({2, 3}, 2).text(2, 2).pin(pins).build(2);
      const ArraySignals arrays = test::random_signals(prompt->num_tokens, 1, 1, 7, seed);
      for (const Case& c : cases) {
        const auto policy = make_policy("hiprune:" + c.options);
        EXPECT_EQ(kept_at_end(make_policy(policy->spec()), facts(1), prompt, arrays),
                  expected(*prompt, arrays, c.object, c.deep, c.number, c.alpha, pins))
            << c.options << " " << seed;
      }
    }
}

TEST(Hiprune, WhatCannotBeServedIsRefused) {
  const auto prompt = LayoutBuilder().image({3, 3}, 0).text(1, 0).build(0);
  for (const char* spec : {"hiprune:num_kept=3,layer_deep=4", "hiprune:num_kept=3,layer_object=2"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(2), *prompt), Error) << spec;
  EXPECT_THROW(make_policy("hiprune:num_kept=3,alpha=3/2"), Error);
  EXPECT_THROW(make_policy("hiprune"), Error);
  const auto entry = std::ranges::find(policy_table(), "hiprune", &PolicyEntry::name);
  ModelFacts model = facts(2);
  EXPECT_EQ(entry->refusal(model), "");
  model.vision_layers = 2;
  model.vision_feature_layer = 0;
  EXPECT_NE(entry->refusal(model).find("2 layers"), std::string::npos) << entry->refusal(model);
  EXPECT_THROW(test::points_of(make_policy("hiprune:num_kept=3"), model, *prompt), Error);
  model.has_class_token = false;
  EXPECT_NE(entry->refusal(model).find("class token"), std::string::npos) << entry->refusal(model);
  EXPECT_THROW(test::points_of(make_policy("hiprune:num_kept=3"), model, *prompt), Error);
}

}  // namespace
}  // namespace espalier
