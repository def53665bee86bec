// SPDX-License-Identifier: Apache-2.0
// What a policy may ask where, and what it may answer: every refusal by name, and what is legal just beside it.
#include "layout/policy_walk.h"

#include "layout/check_signal.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "espalier/error.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::expect_says;
using test::message_of;
using LayoutBuilder = ::espalier::test::LayoutBuilder;
using Tokens = std::vector<int64_t>;

ModelFacts model_facts() {
  ModelFacts model = ::espalier::test::facts(8);
  model.vision_layers = 4;
  model.vision_feature_layer = 2;
  model.has_class_token = true;
  return model;
}

std::shared_ptr<const PromptLayout> prompt() {
  return LayoutBuilder().text(2, 0).image({1, 4}, 0).text(2, 0).build(0);
}

at::Tensor longs(const Tokens& values) {
  return at::tensor(values, at::kLong);
}

// Says what it is told to.
struct Scripted : PruningPolicy {
  std::vector<ActPoint> acts;
  std::function<std::vector<Signal>(const ActPoint&)> asks = [](const ActPoint&) { return std::vector<Signal>{}; };
  std::function<Verdict(const ActPoint&, const TokenLayout&)> answers = [](const ActPoint&, const TokenLayout& layout) {
    return Verdict{.kept = at::arange(layout.num_image_tokens(), at::kLong), .added = {}, .scores = {}, .judged = {}};
  };
  CommonOptions options;

  std::string spec() const override { return "scripted:x=1"; }
  CommonOptions common() const override { return options; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    std::vector<Step> steps;
    for (const ActPoint& p : acts)
      steps.push_back(
          {.at = p,
           .needs = [this, p](const TokenLayout&) { return asks(p); },
           .decide = [this, p](const TokenLayout& layout, std::span<const at::Tensor>) { return answers(p, layout); }});
    return steps;
  }
};

PolicyWalk walk_of(const Scripted& policy, const ModelFacts& model = model_facts()) {
  return {std::make_shared<Scripted>(policy), model, prompt()};
}

Scripted acting(std::vector<ActPoint> acts) {
  Scripted policy;
  policy.acts = std::move(acts);
  return policy;
}

// ---- points ----

TEST(PolicyWalk, PointsOfLayersThatTheModelLacks) {
  for (const Site site : {Site::kBeforeLayer, Site::kAfterAttention, Site::kCache}) {
    EXPECT_NO_THROW(walk_of(acting({{site, 7}})));
    for (const int layer : {8, -1})
      expect_says(message_of<Error>([&] {
                    walk_of(acting({{site, layer}}));
                  }),
                  {"scripted:x=1", std::string(name_of(site)).c_str(), std::to_string(layer).c_str(), "layers 0 to 7"});
  }
}

TEST(PolicyWalk, PointsMustFollowTheData) {
  const std::vector<ActPoint> order = {{Site::kVisionOutput},      {Site::kProjectorOutput}, {Site::kBeforeLayer, 0},
                                       {Site::kAfterAttention, 0}, {Site::kBeforeLayer, 1},  {Site::kAfterAttention, 6},
                                       {Site::kBeforeLayer, 7}};
  EXPECT_NO_THROW(walk_of(acting(order)));
  for (size_t i = 0; i + 1 < order.size(); ++i)
    expect_says(message_of<Error>([&] { walk_of(acting({order[i + 1], order[i]})); }), {"scripted:x=1", "order"});
  expect_says(message_of<Error>([&] {
                walk_of(acting({{Site::kCache, 3}, {Site::kCache, 3}}));
              }),
              {"cache 3", "order"});
}

TEST(PolicyWalk, NoCacheSiteWithASlidingWindow) {
  ModelFacts model = model_facts();
  model.sliding_window = 16;
  EXPECT_NO_THROW(walk_of(acting({{Site::kBeforeLayer, 3}}), model));
  expect_says(message_of<Error>([&] { walk_of(acting({{Site::kCache, 3}}), model); }), {"cache 3", "sliding window"});
}

TEST(PolicyWalk, FewImageTokensAreLeftAlone) {
  Scripted policy = acting({{Site::kProjectorOutput}});
  policy.options.min_tokens = 5;
  EXPECT_EQ(walk_of(policy).next(), nullptr);
  policy.options.min_tokens = 4;
  EXPECT_NE(walk_of(policy).next(), nullptr);
  const auto text_only = LayoutBuilder().text(5, 0).build(0);
  EXPECT_EQ(PolicyWalk(std::make_shared<Scripted>(acting({{Site::kProjectorOutput}})), model_facts(), text_only).next(),
            nullptr);
}

TEST(PolicyWalk, KnowsWhatComesNext) {
  PolicyWalk walk = walk_of(acting({{Site::kProjectorOutput}, {Site::kBeforeLayer, 2}}));
  EXPECT_TRUE(walk.is_next(Site::kProjectorOutput));
  EXPECT_FALSE(walk.is_next(Site::kBeforeLayer, 2));
  EXPECT_EQ(walk.first_readable_layer(), -1);
  walk.act({});
  EXPECT_FALSE(walk.is_next(Site::kBeforeLayer, 1));
  EXPECT_TRUE(walk.is_next(Site::kBeforeLayer, 2));
  EXPECT_EQ(walk.first_readable_layer(), 0);
  walk.act({});
  EXPECT_EQ(walk.next(), nullptr);
  EXPECT_FALSE(walk.is_next(Site::kBeforeLayer, 2));
}

// ---- signals ----

using Heads = AttentionProbe::Heads;
using Rows = AttentionProbe::Rows;
using What = Tap::What;

AttentionProbe class_probe(int layer, Heads heads = Heads::kMean) {
  AttentionProbe probe;
  probe.layer = layer;
  probe.rows = Rows::kClass;
  probe.heads = heads;
  return probe;
}
AttentionProbe last_probe(int layer, Heads heads = Heads::kMean) {
  AttentionProbe probe;
  probe.layer = layer;
  probe.heads = heads;
  return probe;
}
AttentionProbe given_probe(int groups, bool reduce_rows = true) {
  AttentionProbe probe;
  probe.layer = 1;
  probe.rows = Rows::kGiven;
  probe.reduce_rows = reduce_rows;
  for (int i = 0; i < groups; ++i) probe.groups.push_back({.rows = longs({0})});
  return probe;
}
AttentionGrowth growth(int lower, int upper, bool pooled = false) {
  AttentionGrowth g;
  g.lower = lower;
  g.upper = upper;
  if (pooled) g.pool = longs({0});
  return g;
}
Tap tap(What what, int layer = 0) {
  return {what, layer};
}

struct SignalCase {
  Signal signal;
  ActPoint point;
  int first_readable = -1;
  int every = 0;
};

Step step_at(const ActPoint& point, const std::string& policy, int every = 0) {
  Step step{.at = point};
  step.policy = policy;
  step.every = every;
  return step;
}

AttentionProbe generated_probe(int layer) {
  AttentionProbe probe = last_probe(layer);
  probe.rows = Rows::kGenerated;
  return probe;
}

TEST(CheckSignal, AcceptsWhatIsThere) {
  const ActPoint before_3{Site::kBeforeLayer, 3};
  const SignalCase cases[] = {
      {last_probe(2), before_3},
      {last_probe(0, Heads::kMax), before_3},
      {last_probe(0, Heads::kEach), before_3, 0},
      {last_probe(3), before_3},  // look-ahead
      {last_probe(3), before_3, 3},
      {last_probe(3), {Site::kAfterAttention, 3}},
      {last_probe(3), {Site::kCache, 3}},
      {last_probe(3), {Site::kCache, 3}, -1, 4},
      {generated_probe(1), {Site::kCache, 3}, -1, 4},
      {generated_probe(2), before_3},
      {given_probe(3), before_3},
      {given_probe(1, false), before_3},
      {growth(1, 2), before_3},
      {growth(1, 2, true), before_3},
      {growth(0, 3), {Site::kAfterAttention, 3}},
      {growth(2, 3), {Site::kCache, 3}},
      {tap(What::kHidden), before_3},
      {tap(What::kHidden), {Site::kProjectorOutput}},
      {tap(What::kFinalNorm), {Site::kAfterAttention, 3}, 2},
      {tap(What::kKey, 2), before_3},
      {tap(What::kKey, 3), {Site::kCache, 3}, 3},
      {class_probe(3), {Site::kVisionOutput}},
      {class_probe(0, Heads::kJoint), {Site::kProjectorOutput}},
      {class_probe(0, Heads::kEach), {Site::kVisionOutput}},
      {tap(What::kVisionOutput), {Site::kVisionOutput}},
      {tap(What::kVisionClass), {Site::kProjectorOutput}},
      {tap(What::kVisionKey, 3), {Site::kVisionOutput}},
  };
  int number = 0;
  for (const SignalCase& c : cases) {
    SCOPED_TRACE(number++);
    EXPECT_NO_THROW(check_signal(c.signal, step_at(c.point, "policy"), model_facts(), c.first_readable));
  }
}

TEST(CheckSignal, RefusesByName) {
  const ActPoint before_3{Site::kBeforeLayer, 3}, after_3{Site::kAfterAttention, 3}, projector{Site::kProjectorOutput},
      vision{Site::kVisionOutput}, cache_3{Site::kCache, 3};
  AttentionProbe apart = generated_probe(3), given_with_others = given_probe(1);
  apart.reduce_rows = false;
  given_with_others.with_others = true;
  AttentionProbe rows_without_kind = last_probe(1);
  rows_without_kind.groups.push_back({.rows = longs({0})});
  const std::vector<std::pair<SignalCase, std::vector<const char*>>> cases = {
      {{last_probe(8), before_3}, {"before_layer 3", "attention of layer 8", "layers 0 to 7"}},
      {{last_probe(-1), before_3}, {"attention of layer -1", "layers 0 to 7"}},
      {{last_probe(4), before_3}, {"attention of layer 4", "has not run"}},
      {{last_probe(4), after_3}, {"after_attention 3", "has not run"}},
      {{last_probe(4), cache_3}, {"cache 3", "has not run"}},
      {{last_probe(0), projector}, {"projector_output", "attention of layer 0", "has not run"}},
      {{last_probe(0), vision}, {"vision_output", "has not run"}},
      {{last_probe(1), before_3, 2},
       {"attention of layer 1", "before the policy's previous point", "first readable: 2"}},
      {{last_probe(1, Heads::kJoint), before_3}, {"joint heads", "class attention"}},
      {{given_probe(0), before_3}, {"given rows and groups"}},
      {{rows_without_kind, before_3}, {"given rows and groups"}},
      {{given_probe(2, false), before_3}, {"several groups"}},
      {{apart, cache_3}, {"generated rows", "apart"}},
      {{given_with_others, before_3}, {"columns of others", "given rows"}},
      {{given_probe(1), cache_3, -1, 2}, {"given rows", "gone while decoding"}},
      {{growth(2, 3), cache_3, -1, 2}, {"attention growth", "while decoding"}},
      {{tap(What::kKey, 3), cache_3, 3, 2}, {"tensor of prefill", "gone while decoding"}},
      {{class_probe(4), vision}, {"class attention of vision layer 4", "layers 0 to 3"}},
      {{class_probe(-1), vision}, {"vision layer -1"}},
      {{class_probe(1, Heads::kMax), vision}, {"largest head"}},
      {{class_probe(1), before_3}, {"vision tower", "up to projector_output"}},
      {{class_probe(1), projector, 0}, {"vision tower", "first point"}},
      {{growth(2, 2), before_3}, {"from layer 2 to 2"}},
      {{growth(2, 1), before_3}, {"from layer 2 to 1"}},
      {{growth(2, 3), before_3}, {"attention growth of layer 3", "has not run"}},  // there is no look-ahead of growth
      {{growth(-1, 2), before_3}, {"attention growth of layer -1"}},
      {{growth(1, 2), before_3, 2}, {"attention growth of layer 1", "previous point"}},
      {{growth(2, 3, true), cache_3}, {"cosine", "cache"}},
      {{tap(What::kHidden), vision}, {"hidden states", "before the projector"}},
      {{tap(What::kFinalNorm), vision}, {"hidden states"}},
      {{tap(What::kHidden), cache_3}, {"cache 3", "hidden states"}},
      {{tap(What::kKey, 3), before_3}, {"keys of layer 3", "has not run"}},
      {{tap(What::kKey, 1), before_3, 2}, {"keys of layer 1", "previous point"}},
      {{tap(What::kVisionKey, 4), vision}, {"keys of vision layer 4"}},
      {{tap(What::kVisionOutput), before_3}, {"vision tower", "up to projector_output"}},
      {{tap(What::kVisionClass), projector, 0}, {"first point"}},
      {{tap(What::kClipImage), vision}, {"CLIP", "no text tower"}},
      {{tap(What::kClipText), projector}, {"CLIP", "no text tower"}},
  };
  int number = 0;
  for (const auto& [c, says] : cases) {
    SCOPED_TRACE(number++);
    const std::string message = message_of<Error>(
        [&] { check_signal(c.signal, step_at(c.point, "policy:a=1", c.every), model_facts(), c.first_readable); });
    expect_says(message, {"policy:a=1"});
    for (const char* part : says) expect_says(message, {part});
  }
  ModelFacts no_class = model_facts();
  no_class.has_class_token = false;
  for (const Signal& signal : {Signal(class_probe(1)), Signal(tap(What::kVisionClass))})
    expect_says(message_of<Error>([&] { check_signal(signal, step_at(vision, "policy"), no_class, -1); }),
                {"no class token"});
}

// Asked at the right time: a layer that ran before the previous point cannot be read any more, one behind it can.
TEST(PolicyWalk, ReadableLayersFollowThePoints) {
  Scripted policy = acting({{Site::kBeforeLayer, 2}, {Site::kAfterAttention, 3}, {Site::kBeforeLayer, 6}});
  policy.asks = [](const ActPoint& p) {
    return std::vector<Signal>{last_probe(p.site == Site::kAfterAttention ? 2 : p.layer == 6 ? 4 : 1)};
  };
  PolicyWalk walk = walk_of(policy);
  walk.act({});
  EXPECT_EQ(walk.first_readable_layer(), 2);
  walk.act({});
  EXPECT_EQ(walk.first_readable_layer(), 4);
  policy.asks = [](const ActPoint& p) { return std::vector<Signal>{last_probe(p.layer == 6 ? 3 : 1)}; };
  policy.acts = {{Site::kBeforeLayer, 2}, {Site::kAfterAttention, 3}, {Site::kBeforeLayer, 6}};
  policy.acts.erase(policy.acts.begin());
  PolicyWalk other = walk_of(policy);
  expect_says(message_of<Error>([&] { other.act({}); }),
              {"before_layer 6", "attention of layer 3", "first readable: 4"});
}

// ---- verdicts ----

Scripted keeping(ActPoint at, const at::Tensor& kept) {
  Scripted policy = acting({at});
  policy.answers = [kept](const ActPoint&, const TokenLayout&) {
    return Verdict{.kept = kept, .added = {}, .scores = {}, .judged = {}};
  };
  return policy;
}

TEST(PolicyWalk, TracesWhatWasKeptAndJudged) {
  Scripted policy = acting({{Site::kProjectorOutput}, {Site::kBeforeLayer, 3}});
  policy.answers = [](const ActPoint& p, const TokenLayout&) {
    if (p.site == Site::kProjectorOutput)
      return Verdict{.kept = longs({0, 2, 3}), .added = {}, .scores = at::tensor({4.f, 3.f, 2.f, 1.f}), .judged = {}};
    return Verdict{.kept = longs({0, 2}),
                   .added = {},
                   .scores = at::tensor({.5f, .25f, .75f}),
                   .judged = at::tensor({0, 1, 1}).to(at::kBool)};
  };
  PolicyWalk walk = walk_of(policy);
  walk.act({});
  walk.act({});
  const std::vector<PointTrace> trace = walk.trace(true);
  ASSERT_EQ(trace.size(), 2U);
  EXPECT_EQ(trace[0].site, "projector_output");
  EXPECT_EQ(trace[0].layer, -1);
  EXPECT_EQ(trace[0].kept, (Tokens{2, 4, 5}));
  EXPECT_EQ(trace[0].candidates, (Tokens{2, 3, 4, 5}));
  EXPECT_EQ(trace[0].scores, (std::vector<float>{4, 3, 2, 1}));
  EXPECT_EQ(trace[1].site, "before_layer");
  EXPECT_EQ(trace[1].layer, 3);
  EXPECT_EQ(trace[1].kept, (Tokens{2, 5}));
  EXPECT_EQ(trace[1].candidates, (Tokens{4, 5}));
  EXPECT_EQ(trace[1].scores, (std::vector<float>{.25f, .75f}));
  EXPECT_EQ(walk.kept_sources(), (Tokens{2, 5}));
  EXPECT_TRUE(walk.trace(false)[0].scores.empty());
}

TEST(PolicyWalk, CacheVerdictsLeaveTheTokensAlone) {
  PolicyWalk walk = walk_of(keeping({Site::kCache, 2}, longs({0, 1, 1, 3}).view({2, 2})));
  const PolicyWalk::Outcome outcome = walk.act({});
  EXPECT_TRUE(outcome.kept_per_head.equal(longs({0, 1, 1, 3}).view({2, 2})));
  EXPECT_EQ(walk.layout().num_tokens(), 8);
  EXPECT_EQ(walk.kept_sources(), (Tokens{2, 3, 4, 5}));
  const PointTrace trace = walk.trace(false).at(0);
  EXPECT_EQ(trace.kept_per_head, (std::vector<Tokens>{{2, 3}, {3, 5}}));
  EXPECT_TRUE(trace.kept.empty());
  PolicyWalk same_for_all = walk_of(keeping({Site::kCache, 2}, longs({1})));
  EXPECT_TRUE(same_for_all.act({}).kept_per_head.equal(longs({1, 1}).view({2, 1})));
}

TEST(PolicyWalk, RefusesWhatIsNoVerdict) {
  const auto refused = [](const Scripted& policy) {
    PolicyWalk walk = walk_of(policy);
    return message_of<Error>([&] { walk.act({}); });
  };
  for (const ActPoint point : {ActPoint{Site::kProjectorOutput}, ActPoint{Site::kCache, 2}}) {
    SCOPED_TRACE(std::string(name_of(point.site)));
    expect_says(refused(keeping(point, {})), {"scripted:x=1", "int64"});
    expect_says(refused(keeping(point, at::tensor({1.f}))), {"scripted:x=1", "int64"});
    expect_says(refused(keeping(point, at::zeros({2, 1, 1}, at::kLong))), {"scripted:x=1", "int64"});
    expect_says(refused(keeping(point, longs({0, 4}))), {"scripted:x=1", "ascending ordinals below 4", "is 4"});
    expect_says(refused(keeping(point, longs({-1}))), {"scripted:x=1", "is -1"});
    expect_says(refused(keeping(point, longs({2, 1}))), {"scripted:x=1", "ascending"});
    expect_says(refused(keeping(point, longs({1, 1}))), {"scripted:x=1", "ascending"});
    expect_says(refused(keeping(point, longs({0, 1, 2, 3, 3}))), {"scripted:x=1", "5 of 4"});
  }
  expect_says(refused(keeping({Site::kCache, 2}, longs({0, 1, 2}).view({3, 1}))), {"3 rows", "2 KV heads"});
  expect_says(refused(keeping({Site::kCache, 2}, longs({0, 1, 3, 2}).view({2, 2}))), {"ascending"});
  Scripted adding = keeping({Site::kCache, 2}, longs({0}));
  adding.answers = [](const ActPoint&, const TokenLayout&) {
    NewTokens added;
    added.vectors = at::zeros({1, 8});
    added.stands_at = added.position_from = longs({0});
    return Verdict{.kept = longs({1}), .added = {added}, .scores = {}, .judged = {}};
  };
  expect_says(refused(adding), {"scripted:x=1", "new tokens cannot enter at cache 2"});
}

TEST(PolicyWalk, CompactPositionsNeedPlainOnes) {
  LayoutBuilder builder;
  builder.text(2, 0).image({1, 4}, 0).text(2, 0);
  builder.layout().position_id = at::zeros({3, 8}, at::kLong);
  const auto three_part = builder.build(0);
  Scripted policy = acting({{Site::kProjectorOutput}});
  EXPECT_NO_THROW(PolicyWalk(std::make_shared<Scripted>(policy), model_facts(), three_part));
  policy.options.positions = Positions::kCompact;
  expect_says(message_of<Error>([&] { PolicyWalk(std::make_shared<Scripted>(policy), model_facts(), three_part); }),
              {"scripted:x=1", "positions=compact", "three-part"});
}

// ---- while decoding ----

// One step at the cache of layer 2 with `kept` by turns; what the walk keeps of each head with each generated token.
struct AskedAgain : PruningPolicy {
  Step step;
  std::vector<Verdict> verdicts;

  std::string spec() const override { return "again"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    Step own = step;
    own.decide = [verdicts = verdicts, turn = std::make_shared<size_t>(0)](
                     const TokenLayout&, std::span<const at::Tensor>) { return verdicts.at((*turn)++); };
    return {own};
  }
};

AskedAgain asked_again(int every, bool revives, std::vector<Verdict> verdicts) {
  AskedAgain policy;
  policy.step.at = {Site::kCache, 2};
  policy.step.every = every;
  policy.step.revives = revives;
  policy.step.budget.is_adaptive = true;
  policy.verdicts = std::move(verdicts);
  return policy;
}

Verdict ranking(std::vector<float> scores, int64_t number) {
  return {.scores = at::tensor(scores, at::kFloat), .num_kept = {number}};
}

std::vector<Tokens> kept_again(const AskedAgain& policy, int64_t answer) {
  PolicyWalk walk(std::make_shared<AskedAgain>(policy), model_facts(), prompt());
  walk.act({});
  for (int64_t generated = 1; generated <= answer; ++generated)
    if (walk.again()[0].is_due(generated)) walk.act_again(0, generated, {});
  std::vector<Tokens> kept;
  for (const PointTrace& point : walk.trace(false)) {
    EXPECT_EQ(point.kept_per_head.at(0), point.kept_per_head.at(1));
    kept.push_back(point.kept_per_head[0]);
    kept.back().push_back(-point.generated);  // with which token
  }
  return kept;
}

TEST(AskedAgain, WithEachOfSoManyTokensAndWhatIsHeldComesBack) {
  const std::vector<Verdict> verdicts = {ranking({4, 3, 2, 1}, 2), ranking({1, 2, 3, 4}, 2), ranking({0, 1, 1, 0}, 3)};
  EXPECT_EQ(kept_again(asked_again(3, true, verdicts), 8), (std::vector<Tokens>{{2, 3, 0}, {4, 5, -3}, {2, 3, 4, -6}}));
  EXPECT_EQ(kept_again(asked_again(1, true, verdicts), 2), (std::vector<Tokens>{{2, 3, 0}, {4, 5, -1}, {2, 3, 4, -2}}));
}

TEST(AskedAgain, WhatIsFreedNeverComesBack) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(kept_again(asked_again(1, false,
                                   {ranking({4, 3, 1, 2}, 3), ranking({1, 2, 9, 4}, 3), ranking({1, 2, 9, 4}, 2),
                                    ranking({9, nan, 9, nan}, 1)}),
                       3),
            (std::vector<Tokens>{{2, 3, 5, 0}, {2, 3, 5, -1}, {3, 5, -2}, {3, -3}}));
  expect_says(message_of<Error>([] {
                kept_again(asked_again(1, false, {ranking({4, 3, 1, 2}, 2), Verdict{.kept = longs({0, 3})}}), 1);
              }),
              {"again", "cache 2", "freed"});
}

// Four image tokens and a number of them; the answer's tokens count too until only the pinned one is left.
TEST(AskedAgain, MakesRoomForTheAnswer) {
  AskedAgain policy = asked_again(2, false, std::vector<Verdict>(4, ranking({1, 4, 3, 2}, 0)));
  for (Verdict& verdict : policy.verdicts) verdict.num_kept = {};
  policy.step.budget = {.amount = {.keep_ratio = {}, .num_kept = 4}};
  policy.step.makes_room = true;
  const auto pinned = LayoutBuilder().text(2, 0).image({1, 4}, 0).text(2, 0).pin({2}).build(0);
  PolicyWalk walk(std::make_shared<AskedAgain>(policy), model_facts(), pinned);
  EXPECT_EQ(walk.steps().at(0).least, 1);
  walk.act({});
  for (const int64_t generated : {2, 4, 6}) walk.act_again(0, generated, {});
  std::vector<Tokens> kept;
  for (const PointTrace& point : walk.trace(false)) kept.push_back(point.kept_per_head[0]);
  EXPECT_EQ(kept, (std::vector<Tokens>{{2, 3, 4}, {2}, {2}, {2}}));
}

TEST(AskedAgain, RefusesWhatCannotBe) {
  const auto refusal = [](const std::function<void(Step&)>& change) {
    AskedAgain policy = asked_again(1, false, {});
    change(policy.step);
    return message_of<Error>([&] { PolicyWalk(std::make_shared<AskedAgain>(policy), model_facts(), prompt()); });
  };
  expect_says(refusal([](Step& s) { s.every = -1; }), {"cache 2", "every is below 0"});
  expect_says(refusal([](Step& s) { s.at = {Site::kBeforeLayer, 2}; }), {"before_layer 2", "only at a cache"});
  expect_says(refusal([](Step& s) { s.every = 0, s.revives = true; }), {"cache 2", "asked again"});
  expect_says(refusal([](Step& s) { s.makes_room = true; }), {"room", "number"});
  expect_says(refusal([](Step& s) { s.scope = Scope::kRequest, s.budget.pool = Budget::Pool::kImage; }), {"one pool"});
}

TEST(AskedAgain, AnAnswersPointsCanBeForgotten) {
  PolicyWalk walk(std::make_shared<AskedAgain>(asked_again(
                      1, true, {ranking({4, 3, 2, 1}, 2), ranking({1, 2, 3, 4}, 2), ranking({1, 2, 3, 4}, 1)})),
                  model_facts(), prompt());
  EXPECT_TRUE(walk.asks_again());
  walk.forget_answer();
  walk.act({});
  walk.act_again(0, 1, {});
  walk.act_again(0, 2, {});
  EXPECT_EQ(walk.last_point().generated, 2);
  EXPECT_EQ(walk.last_point().kept_per_head.at(0), Tokens{5});
  EXPECT_EQ(walk.trace(false).size(), 1U);
}

}  // namespace
}  // namespace espalier
