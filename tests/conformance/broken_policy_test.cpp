// SPDX-License-Identifier: Apache-2.0
// Policies that each break one property: the kit has to say so, and to find nothing in the sound one they are made
// from.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "espalier/error.h"
#include "espalier/policy_properties.h"

namespace espalier {
namespace {

using Choose = std::function<at::Tensor(const TokenLayout& layout, Fraction ratio)>;

// Keeps what `choose` says before the decoder.
class Chooses final : public PruningPolicy {
 public:
  Chooses(Choose choose, Fraction ratio, bool acts_always = false)
      : choose_(std::move(choose)), ratio_(ratio), acts_always_(acts_always) {}
  std::string spec() const override { return "chooses"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout& prompt) const override {
    if (!acts_always_ && (prompt.images.empty() || ratio_ == Fraction{1, 1})) return {};
    return {{.at = {Site::kProjectorOutput}, .decide = [this](const TokenLayout& layout, std::span<const at::Tensor>) {
               return Verdict{.kept = choose_(layout, ratio_)};
             }}};
  }

 private:
  Choose choose_;
  Fraction ratio_;
  bool acts_always_;
};

ConformingPolicy choosing(Choose choose, bool acts_always = false) {
  ConformingPolicy policy;
  policy.name = "chooses";
  policy.make = [=](Fraction ratio) { return std::make_shared<Chooses>(choose, ratio, acts_always); };
  return policy;
}

// The first tokens of each image, pinned ones before the others.
at::Tensor sound(const TokenLayout& layout, Fraction ratio) {
  const PromptLayout& prompt = *layout.prompt;
  std::vector<int64_t> kept;
  int64_t first = 0;
  for (size_t image = 0; image < prompt.images.size(); ++image) {
    const int64_t m = prompt.num_patches(static_cast<int>(image)), k = m * ratio.num / ratio.den;
    std::vector<int64_t> chosen;
    for (const bool pinned : {true, false})
      for (int64_t i = first; i < first + m && std::ssize(chosen) < k; ++i)
        if (layout.pinned[layout.image_tokens[i].item<int64_t>()].item<bool>() == pinned) chosen.push_back(i);
    std::ranges::sort(chosen);
    kept.insert(kept.end(), chosen.begin(), chosen.end());
    first += m;
  }
  return at::tensor(kept, at::kLong);
}

std::vector<std::string> all_answers(const ConformingPolicy& policy) {
  using namespace conformance;
  return {keeps_tokens_that_are_there(policy),
          keeps_text(policy),
          conformance::keeps_the_share(policy),
          conformance::keeps_each_share(policy),
          conformance::keeps_all_at_one(policy),
          conformance::keeps_pinned(policy),
          conformance::treats_images_alike(policy),
          works_without_images(policy),
          works_with_one_token(policy),
          works_with_sixteen_images(policy),
          works_with_tiles(policy),
          works_with_equal_tokens(policy),
          keeps_to_its_scope(policy),
          keeps_nested_sets(policy),
          repeats_itself(policy)};
}

TEST(Conformance, FindsNothingInASoundPolicy) {
  for (const std::string& wrong : all_answers(choosing(sound))) EXPECT_EQ(wrong, "");
}

TEST(Conformance, SeesKeptTokensOutOfOrder) {
  const auto policy = choosing([](const TokenLayout& layout, Fraction ratio) { return sound(layout, ratio).flip(0); });
  EXPECT_NE(conformance::keeps_tokens_that_are_there(policy), "");
}

TEST(Conformance, SeesTokensThatAreNotThere) {
  const auto policy = choosing([](const TokenLayout& layout, Fraction) {
    return at::tensor(std::vector<int64_t>{layout.num_image_tokens()}, at::kLong);
  });
  EXPECT_NE(conformance::keeps_tokens_that_are_there(policy), "");
}

// Sound behind prefill, and again with each second token, until what it says is of tokens that are not there.
TEST(Conformance, SeesWhatGoesWrongWhileDecoding) {
  struct AsksAgain : PruningPolicy {
    explicit AsksAgain(bool sound) : is_sound(sound) {}
    std::string spec() const override { return "asks_again"; }
    std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
      return {{.at = {Site::kCache, 2},
               .needs = [](const TokenLayout&) -> std::vector<Signal> {
                 return {AttentionProbe{.layer = 2, .rows = AttentionProbe::Rows::kGenerated}};
               },
               .decide =
                   [sound = is_sound, asked = std::make_shared<int>(0)](const TokenLayout& layout,
                                                                        std::span<const at::Tensor> signals) {
                     const int64_t m = layout.num_image_tokens(), last = ++*asked < 3 || sound ? m - 1 : m;
                     return Verdict{.kept = at::tensor({last}, at::kLong), .scores = signals[0]};
                   },
               .every = 2,
               .revives = true}};
    }
    bool is_sound;
  };
  for (const bool sound : {true, false}) {
    ConformingPolicy policy;
    policy.name = "asks_again";
    policy.make = [=](Fraction) { return std::make_shared<AsksAgain>(sound); };
    EXPECT_EQ(conformance::keeps_tokens_that_are_there(policy).empty(), sound);
    EXPECT_EQ(conformance::repeats_itself(policy).empty(), sound);
  }
}

TEST(Conformance, SeesMoreThanTheShare) {
  const auto policy =
      choosing([](const TokenLayout& layout, Fraction) { return at::arange(layout.num_image_tokens(), at::kLong); });
  EXPECT_NE(conformance::keeps_the_share(policy).find("the shares of the images add up to"), std::string::npos);
}

// Prefers the largest image: wherever that stands, so that it treats images alike, and may spend all it has on it.
TEST(Conformance, SeesAPolicyThatSpendsAllOnOneImage) {
  ConformingPolicy policy = choosing([](const TokenLayout& layout, Fraction ratio) {
    const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
    int64_t largest = 0;
    for (size_t i = 0; i < layout.prompt->images.size(); ++i)
      largest = std::max(largest, (image == static_cast<int64_t>(i)).sum().item<int64_t>());
    std::vector<int64_t> kept;  // of the largest image first
    for (const bool of_largest : {true, false})
      for (int64_t t = 0; t < image.size(0); ++t)
        if ((layout.prompt->num_patches(static_cast<int>(image[t].item<int64_t>())) == largest) == of_largest &&
            std::ssize(kept) < image.size(0) * ratio.num / ratio.den)
          kept.push_back(t);
    std::ranges::sort(kept);
    return at::tensor(kept, at::kLong);
  });
  EXPECT_EQ(conformance::keeps_the_share(policy), "");
  EXPECT_EQ(conformance::keeps_each_share(choosing(sound)), "");
  EXPECT_NE(conformance::keeps_each_share(policy).find("tokens, its share is"), std::string::npos);
}

TEST(Conformance, SeesThatRatioOneDrops) {
  const auto policy = choosing(
      [](const TokenLayout& layout, Fraction) { return at::arange(1, layout.num_image_tokens(), at::kLong); }, true);
  EXPECT_NE(conformance::keeps_all_at_one(policy), "");
}

TEST(Conformance, SeesDroppedPins) {
  const auto policy = choosing([](const TokenLayout& layout, Fraction ratio) {
    const int64_t m = layout.num_image_tokens();
    return at::arange(m - m * ratio.num / ratio.den, m, at::kLong);
  });
  EXPECT_NE(conformance::keeps_pinned(policy).find("pinned token"), std::string::npos);
}

TEST(Conformance, SeesThatTheFirstImageIsPreferred) {
  const auto policy = choosing([](const TokenLayout& layout, Fraction ratio) {
    return at::arange(layout.num_image_tokens() * ratio.num / ratio.den, at::kLong);
  });
  EXPECT_NE(conformance::treats_images_alike(policy), "");
}

// Ranks by its own signal, and says what it is told about scope and nesting.
class Ranks final : public PruningPolicy {
 public:
  Ranks(Step step, Fraction ratio) : step_(std::move(step)) { step_.budget.amount.keep_ratio = ratio; }
  std::string spec() const override { return "ranks"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override { return {step_}; }

 private:
  Step step_;
};

ConformingPolicy ranking(const Step& step) {
  ConformingPolicy policy;
  policy.name = "ranks";
  policy.make = [=](Fraction ratio) { return std::make_shared<Ranks>(step, ratio); };
  return policy;
}

// First values of the states, less the mean over all tokens where the question is looked at.
Step by_first_value(Scope scope, bool looks_at_all) {
  return {.at = {Site::kProjectorOutput},
          .scope = scope,
          .budget = {.pool = Budget::Pool::kImage},
          .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
          .decide =
              [looks_at_all](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                const at::Tensor first = signals[0].select(1, 0);
                const at::Tensor own = first.index_select(0, layout.image_tokens);
                return Verdict{.scores = looks_at_all ? (own - first.mean()).abs() : own};
              }};
}

TEST(Conformance, SeesAStepThatLooksBeyondItsScope) {
  for (const Scope scope : {Scope::kImage, Scope::kExample, Scope::kPrefix}) {
    EXPECT_EQ(conformance::keeps_to_its_scope(ranking(by_first_value(scope, false))), "");
    EXPECT_NE(conformance::keeps_to_its_scope(ranking(by_first_value(scope, true))), "");
  }
  EXPECT_EQ(conformance::keeps_to_its_scope(ranking(by_first_value(Scope::kRequest, true))), "");
}

TEST(Conformance, SeesSetsThatAreNotNested) {
  Step step = by_first_value(Scope::kImage, false);
  EXPECT_EQ(conformance::keeps_nested_sets(ranking(step)), "");
  step.decide = [](const TokenLayout&,
                   std::span<const at::Tensor>) {  // the last ones that fit, shifted by their number
    return Verdict{.choose = [](const Pools& pools) {
      std::vector<int64_t> kept;
      for (size_t i = 0; i < pools.num_kept.size(); ++i)
        for (int64_t j = 0; j < pools.num_kept[i]; ++j)
          kept.push_back(pools.begin[i] + (j + pools.num_kept[i]) % pools.size(i));
      return Choice{int64_tensor(kept)};
    }};
  };
  EXPECT_NE(conformance::keeps_nested_sets(ranking(step)), "");
  step.is_nested = false;
  EXPECT_EQ(conformance::keeps_nested_sets(ranking(step)), "");
}

TEST(Conformance, SeesAPolicyThatRemembers) {
  const auto calls = std::make_shared<std::atomic<int>>(0);
  const auto policy = choosing([calls](const TokenLayout& layout, Fraction) {
    return at::tensor(std::vector<int64_t>{(*calls)++ % layout.num_image_tokens()}, at::kLong);
  });
  EXPECT_NE(conformance::repeats_itself(policy), "");
}

TEST(Conformance, SeesAPolicyThatCannotTakeTiles) {
  const auto policy = choosing([](const TokenLayout& layout, Fraction ratio) {
    if (layout.prompt->images[0].tiling) throw Error("no tiles");
    return sound(layout, ratio);
  });
  EXPECT_EQ(conformance::works_with_tiles(policy), "it threw: no tiles");
}

}  // namespace
}  // namespace espalier
