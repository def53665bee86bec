// SPDX-License-Identifier: Apache-2.0
// What the engine makes of a user's own steps: budgets, pools, pins, floors and pipelines without a line of the
// policy's.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <string>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::facts;
using Tokens = std::vector<int64_t>;
using Prompt = std::shared_ptr<const PromptLayout>;

// Ranks image tokens by their ordinal, the last first.
struct LastFirst : PruningPolicy {
  explicit LastFirst(Step first) : step(std::move(first)) {
    if (!step.decide)
      step.decide = [](const TokenLayout& layout, std::span<const at::Tensor>) {
        return Verdict{.scores = at::arange(layout.num_image_tokens(), layout.image_tokens.options()).to(at::kFloat)};
      };
  }
  std::string spec() const override { return "last_first:x=1"; }
  CommonOptions common() const override { return options; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override { return {step}; }
  Step step;
  CommonOptions options;
};

Step before_2(Budget budget, Scope scope = Scope::kRequest) {
  return {.at = {Site::kBeforeLayer, 2}, .scope = scope, .budget = std::move(budget)};
}

Prompt two_images() {
  return LayoutBuilder().text(1, 0).image({1, 4}, 0).text(1, 0).image({1, 4}, 1).text(2, 1).build(1);  // 1 … 4, 6 … 9
}

Tokens kept_by(const LastFirst& policy, const Prompt& prompt) {
  return test::kept_at_end(std::make_shared<LastFirst>(policy), facts(8), prompt, {});
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Steps, PoolsCutOneRanking) {
  const Amount half{.keep_ratio = Fraction{1, 2}};
  EXPECT_EQ(kept_by(LastFirst(before_2({.amount = half})), two_images()), (Tokens{6, 7, 8, 9}));
  EXPECT_EQ(kept_by(LastFirst(before_2({.pool = Budget::Pool::kImage, .amount = half})), two_images()),
            (Tokens{3, 4, 8, 9}));
  EXPECT_EQ(kept_by(LastFirst(before_2({.pool = Budget::Pool::kCrop, .amount = half})), two_images()),
            (Tokens{3, 4, 8, 9}));
  EXPECT_EQ(kept_by(LastFirst(before_2({.pool = Budget::Pool::kImage, .counts = {1, 3}})), two_images()),
            (Tokens{4, 7, 8, 9}));
}

TEST(Steps, OnlySomeImagesAreJudged) {
  EXPECT_EQ(kept_by(LastFirst(before_2({.counts = {1}, .images = {0}})), two_images()), (Tokens{4, 6, 7, 8, 9}));
  const Budget of_each{.pool = Budget::Pool::kImage, .counts = {4, 2}, .images = {1}};
  EXPECT_EQ(kept_by(LastFirst(before_2(of_each)), two_images()), (Tokens{1, 2, 3, 4, 8, 9}));
}

TEST(Steps, FloorsAndPinsAreTheEngines) {
  LastFirst policy(before_2({.amount = {.num_kept = 3}}));
  policy.options.min_per_image = 1;
  EXPECT_EQ(kept_by(policy, two_images()), (Tokens{4, 8, 9}));
  const Prompt pinned =
      LayoutBuilder().text(1, 0).image({1, 4}, 0).text(1, 0).image({1, 4}, 1).text(2, 1).pin({1, 2}).build(1);
  EXPECT_EQ(kept_by(LastFirst(before_2({.amount = {.num_kept = 3}})), pinned), (Tokens{1, 2, 9}));
  EXPECT_EQ(error_of([&] { kept_by(LastFirst(before_2({.amount = {.num_kept = 1}})), pinned); }),
            "last_first: the amount keeps 1 tokens of a pool in which 2 are pinned");
}

TEST(Steps, TheDataMayDecideHowMany) {
  Step step = before_2({.pool = Budget::Pool::kImage, .is_adaptive = true});
  step.decide = [](const TokenLayout& layout, std::span<const at::Tensor>) {
    return Verdict{.scores = at::arange(layout.num_image_tokens(), at::kFloat), .num_kept = {1, 2}};
  };
  EXPECT_EQ(kept_by(LastFirst(step), two_images()), (Tokens{4, 8, 9}));
  step.decide = [](const TokenLayout& layout, std::span<const at::Tensor>) {
    const at::Tensor ordinal = at::arange(layout.num_image_tokens(), at::kLong);
    return Verdict{.scores = ordinal.to(at::kFloat), .always = ordinal == 1};
  };
  EXPECT_EQ(kept_by(LastFirst(step), two_images()), (Tokens{2}));
  LastFirst floored(step);
  floored.options.min_per_image = 2;
  EXPECT_EQ(kept_by(floored, two_images()), (Tokens{2, 4, 8, 9}));
}

TEST(Steps, WhatIsNoStepIsRefused) {
  const auto refused = [&](const Step& step) { return error_of([&] { kept_by(LastFirst(step), two_images()); }); };
  EXPECT_EQ(refused(before_2({.amount = {.num_kept = 3}}, Scope::kImage)),
            "last_first:x=1: acts at before_layer 2, but its pool is wider than its scope");
  EXPECT_EQ(refused(before_2({.pool = Budget::Pool::kImage, .amount = {.num_kept = 3}}, Scope::kCrop)),
            "last_first:x=1: acts at before_layer 2, but its pool is wider than its scope");
  EXPECT_EQ(
      refused(before_2({.amount = {.num_kept = 3}, .is_adaptive = true})),
      "last_first:x=1: acts at before_layer 2, but its budget is more than one of an amount, counts and adaptive");
  EXPECT_EQ(refused(before_2({})), "last_first:x=1: a ranking needs a budget, and the step has none");
  EXPECT_EQ(refused(before_2({.is_adaptive = true})),
            "last_first:x=1: an adaptive budget needs num_kept, or the tokens that always stay");
  Step few = before_2({.amount = {.num_kept = 3}});
  few.decide = [](const TokenLayout&, std::span<const at::Tensor>) {
    return Verdict{.scores = at::arange(2, at::kFloat)};
  };
  EXPECT_EQ(refused(few), "last_first:x=1: a ranking of 8 image tokens needs as many scores");
}

TEST(Chain, TakesAUsersOwnPolicies) {
  const auto own = std::make_shared<LastFirst>(before_2({.pool = Budget::Pool::kImage, .amount = {.num_kept = 1}}));
  const PolicyPtr both = chain({make_policy("random:keep_ratio=1/2"), own});
  EXPECT_EQ(both->spec(), "random:keep_ratio=1/2 + last_first:x=1");
  const auto points = test::run(both, facts(8), two_images(), {});
  ASSERT_EQ(points.size(), 2U);
  EXPECT_EQ(points[1].kept, (Tokens{points[0].kept[1], points[0].kept[3]}));
  EXPECT_EQ(chain({both, make_policy("vtw:layer=5")})->spec(), both->spec() + " + vtw:layer=5");
  EXPECT_EQ(
      error_of([&] {
        test::points_of(chain({own, make_policy("uniform:num_kept=0")}), facts(8), *two_images());
      }),
      "pipeline: uniform:num_kept=0 acts at projector_output, which comes before before_layer 2 of last_first:x=1");
  EXPECT_THROW(chain({}), Error);
}

}  // namespace
}  // namespace espalier
