// SPDX-License-Identifier: Apache-2.0
// CATP against the vectors of docs/specs/catp.md, section 9, and against the section's pseudocode written out in
// float64 loops, for every option and for requests with several images, without text, with row breaks and without
// examples.
#include "espalier/policies/catp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"
#include "tests/support/catp_loops.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::cosine;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using test::mean_of;
using Prompt = std::shared_ptr<const PromptLayout>;
using Tokens = std::vector<int64_t>;

// ---- V1: stage 1 ----

struct StageOneVector : ::testing::Test {
  Prompt prompt = LayoutBuilder().image({1, 6}, 0).text(2, 0).build(0);
  ArraySignals signals;
  StageOneVector() {
    signals.hidden[0] = Matrix{{1, 0, 0}, {0.9, 0.1, 0},   {0, 1, 0},       {0, 0.8, 0.6},
                               {0, 0, 1}, {0.5, 0.5, 0.5}, {0.2, 0.4, 0.9}, {0.0, 0.6, 0.7}};
  }
  Tokens kept(const std::string& spec) const {
    return kept_at_end(make_policy("catp:" + spec), facts(8), prompt, signals);
  }
};

TEST_F(StageOneVector, GreedyOrderForThreeWeights) {
  const std::pair<const char*, Tokens> cases[] = {
      {"0", {5, 0, 3, 4, 2, 1}}, {"0.7", {5, 3, 4, 1, 2, 0}}, {"5", {5, 3, 4, 2, 1, 0}}};
  for (const auto& [lambda1, order] : cases)
    for (int64_t number = 1; number <= 6; ++number) {
      Tokens first(order.begin(), order.begin() + number);
      std::sort(first.begin(), first.end());
      EXPECT_EQ(kept("stage1_share=1,lambda1=" + std::string(lambda1) + ",num_kept=" + std::to_string(number)), first)
          << lambda1 << " " << number;
    }
}

TEST_F(StageOneVector, PublishedRatios) {
  const auto stage1 = [&](const char* spec) {
    PolicyWalk walk(make_policy(spec), facts(8), prompt);
    const std::vector<at::Tensor> states{signals.answer(walk.needs().at(0), *walk.next(), walk.layout())};
    walk.act(states);
    return walk.kept_sources();
  };
  EXPECT_EQ(stage1("catp:keep_ratio=2/9"), (Tokens{3, 4, 5}));
  EXPECT_EQ(stage1("catp:keep_ratio=1/3"), (Tokens{1, 3, 4, 5}));
}

TEST_F(StageOneVector, LengthsOfStatesDoNotMatter) {
  const Tokens before = kept("stage1_share=1,num_kept=3");
  for (int64_t c = 0; c < 3; ++c) {
    signals.hidden[0].at(2, c) *= 7;
    signals.hidden[0].at(5, c) *= 0.01;
  }
  EXPECT_EQ(kept("stage1_share=1,num_kept=3"), before);
}

// ---- V2: stage 2 ----

struct StageTwoVector : ::testing::Test {
  Prompt prompt = LayoutBuilder()
                      .text(1, -1)
                      .image({1, 3}, 0)
                      .text(1, 0)
                      .image({1, 3}, 1)
                      .text(1, 1)
                      .image({1, 3}, 2)
                      .text(2, 2)
                      .build(2);
  ArraySignals signals;

  StageTwoVector() {
    const Matrix h = {{1, 1, 1},    {1, 0, 0},     {0, 1, 0},    {.6, .8, 0},  {.3, .3, .9},
                      {0, 0, 1},    {-1, 0, 0},    {.5, .1, .8}, {.2, .9, .1}, {.8, .2, .4},
                      {.1, .9, .2}, {-.5, .5, .5}, {.9, .3, .1}, {.7, .4, .3}};
    signals.hidden[2] = h;
    signals.hidden[3] = Matrix(14, 3);
    for (int64_t t = 0; t < 14; ++t)
      for (int64_t c = 0; c < 3; ++c) signals.hidden[3].at(t, c) = h.at(t, (c + 1) % 3) + 0.1;
    const double rows[2][2][14] = {{{.25, .06, .03, .02, .05, .02, .05, .04, .05, .10, .08, .05, .10, .10},
                                    {.15, .04, .05, .04, .07, .04, .03, .06, .07, .08, .08, .07, .10, .12}},
                                   {{.20, .05, .02, .10, .04, .03, .01, .06, .05, .10, .06, .04, .09, .15},
                                    {.10, .09, .04, .06, .06, .01, .03, .10, .05, .08, .08, .06, .09, .15}}};
    for (int layer = 0; layer < 2; ++layer)
      for (int head = 0; head < 2; ++head) {
        Matrix a(14, 14);
        for (int64_t c = 0; c < 14; ++c) a.at(13, c) = rows[layer][head][c];
        signals.attention[layer].push_back(a);
      }
  }

  // K = 2; both halves of the budget of stage 2.
  std::vector<PointTrace> points(const std::string& options) const {
    return run(make_policy("catp:keep_ratio=1/2,stage1_share=0,k=2" + options), facts(4), prompt, signals);
  }
  Tokens context(const std::string& options) const {
    Tokens kept = points(options).at(0).kept;
    std::erase_if(kept, [](int64_t t) { return t >= 9; });
    return kept;
  }
};

void expect_scores(const PointTrace& point, const std::vector<double>& expected) {
  ASSERT_EQ(point.scores.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(point.scores[i], expected[i], 2e-6) << i;
}

TEST_F(StageTwoVector, ScoresAndKeptTokens) {
  const auto both = points("");
  ASSERT_EQ(both.size(), 2U);
  EXPECT_EQ(both[0].site, "before_layer");
  EXPECT_EQ(both[0].layer, 2);
  EXPECT_EQ(both[0].candidates, (Tokens{1, 2, 3, 5, 6, 7}));
  expect_scores(both[0], {0.373247, 0.406234, 0.586935, 0.264935, -0.353247, 0.482411});
  EXPECT_EQ(both[0].kept, (Tokens{2, 3, 7, 9, 10, 11}));
  EXPECT_EQ(both[1].layer, 3);
  EXPECT_EQ(both[1].candidates, (Tokens{9, 10, 11}));
  expect_scores(both[1], {0.807083, 0.930790, 0.604634});
  EXPECT_EQ(both[1].kept, (Tokens{2, 3, 7, 10}));
}

TEST_F(StageTwoVector, VariantsThatDiffer) {
  EXPECT_EQ(context(",delta_norm=max"), (Tokens{1, 3, 7}));
  EXPECT_EQ(context(",query_pool=text"), (Tokens{1, 3, 7}));
  EXPECT_EQ(context(",lambda2=0"), (Tokens{1, 3, 7}));
  expect_scores(points(",lambda2=0")[0], {0.02, 0, 0.05, 0, 0, 0.03});
  expect_scores(points(",lambda2=0,relu=per_head")[0], {.025, 0, .05, .005, 0, .03});
  expect_scores(points(",lambda2=1,similarity2=affine")[0], {0.02 + 1.588745 / 2, 1.677057 / 2, 0.05 + 1.894892 / 2,
                                                             1.441559 / 2, (1 - 0.588745) / 2, 0.03 + 1.754019 / 2});
  expect_scores(points(",context_pool=image")[1], {0.813826, 0.934009, 0.534848});
}

// The vector keeps 1 + 2 by image: one of each is what floor gives, two of each what ceil gives.
TEST_F(StageTwoVector, RankingByImage) {
  EXPECT_EQ(context(",ranking=per_image"), (Tokens{3, 7}));
  EXPECT_EQ(context(",ranking=per_image,rounding=ceil"), (Tokens{2, 3, 5, 7}));
}

// What the policy leaves at the same three places.
std::map<int, Tokens> after_steps(const PolicyPtr& policy, const Prompt& prompt, const ArraySignals& signals,
                                  int num_layers, int k) {
  const auto points = run(policy, facts(num_layers), prompt, signals);
  std::map<int, Tokens> after;
  Tokens kept = test::image_tokens_of(*prompt, policy->row_breaks_compete());
  for (const int place : {0, k, k + 1}) {
    for (const auto& point : points)
      if ((point.site == "projector_output" ? 0 : point.layer) == place) kept = point.kept;
    after[place] = kept;
  }
  return after;
}

Prompt in_context_prompt() {  // the second example has two images side by side, so that one has no text
  return LayoutBuilder()
      .text(2, -1)
      .image({2, 3}, 0)
      .text(4, 0)
      .image({3, 3}, 1)
      .image({2, 2}, 1)
      .text(3, 1)
      .image({3, 4}, 2)
      .text(5, 2)
      .build(2);
}

Prompt
tiled_prompt() {  // any-resolution images: full view, then two tiles in stitched rows, each closed by a row break
  LayoutBuilder builder;
  builder.text(1, -1);
  for (int image = 0; image < 2; ++image) {
    builder.layout().images.push_back({.grid = {2, 2}, .tiling = GridSize{1, 2}});
    builder.patches(image, 0, {2, 2}, {0, 0}, image);
    for (int64_t row = 0; row < 2; ++row)
      builder.patches(image, 1, {1, 2}, {row, 0}, image)
          .patches(image, 2, {1, 2}, {row, 0}, image)
          .row_break(image, image);
    builder.text(3, image);
  }
  return builder.build(1);
}

struct NamedPrompt {
  const char* name;
  Prompt prompt;
};

struct Case {
  const char* spec;
  void (*set)(CatpOptions&);
};

struct CatpAgainstLoops : ::testing::TestWithParam<Case> {};

TEST_P(CatpAgainstLoops, EveryStepAgrees) {
  const NamedPrompt prompts[] = {
      {"in context", in_context_prompt()},
      {"tiled", tiled_prompt()},
      {"no example", LayoutBuilder().text(2, -1).image({3, 4}, 0).text(4, 0).build(0)},
      {"no text at all", LayoutBuilder().text(2, -1).image({3, 4}, 0).build(0)},
      {"text-only examples", LayoutBuilder().text(2, -1).text(3, 0).image({3, 4}, 1).text(2, 1).build(1)},
      {"query without image", LayoutBuilder().image({3, 3}, 0).text(3, 0).text(4, 1).build(1)},
  };
  int compared = 0;
  for (const auto& [name, prompt] : prompts)
    for (const Fraction ratio : {Fraction{2, 9}, Fraction{1, 2}, Fraction{81, 100}})
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 3, 6, seed * 1000);
        CatpOptions options{.amount = {.keep_ratio = ratio}, .k = 3};
        GetParam().set(options);
        const PolicyPtr policy = make_catp(options);
        test::CatpLoops reference(*prompt, signals, options, 3);
        const auto expected = reference.run_all();
        if (!reference.has_near_tie) {
          EXPECT_EQ(after_steps(policy, prompt, signals, 8, 3), expected)
              << policy->spec() << " on " << name << ", seed " << seed;
          ++compared;
        }
        const std::string text =
            "catp:k=3,keep_ratio=" + std::to_string(ratio.num) + "/" + std::to_string(ratio.den) + GetParam().spec;
        EXPECT_EQ(make_policy(text)->spec(), policy->spec());
      }
  EXPECT_GE(compared, 18);  // of 54
}

using O = CatpOptions;
INSTANTIATE_TEST_SUITE_P(
    Options, CatpAgainstLoops,
    ::testing::Values(
        Case{"", [](O&) {}},  //
        Case{",lambda1=0", [](O& o) { o.lambda1 = 0; }},
        Case{",lambda1=3,lambda2=0", [](O& o) { o.lambda1 = 3, o.lambda2 = 0; }},
        Case{",lambda2=0.05", [](O& o) { o.lambda2 = 0.05; }},
        Case{",stage1_share=1",
             [](O& o) {
               o.stage1_share = {1, 1};
             }},
        Case{",stage1_share=0",
             [](O& o) {
               o.stage1_share = {0, 1};
             }},
        Case{",stage1_share=1/3",
             [](O& o) {
               o.stage1_share = {1, 3};
             }},
        Case{",similarity=clamp", [](O& o) { o.similarity = ops::Similarity::kClamp; }},
        Case{",similarity=minmax", [](O& o) { o.similarity = ops::Similarity::kMinmax; }},
        Case{",scale=div_mean", [](O& o) { o.scale = O::Scale::kDivMean; }},
        Case{",query_pool=text", [](O& o) { o.query_pool = O::QueryPool::kText; }},
        Case{",query_pool=last", [](O& o) { o.query_pool = O::QueryPool::kLast; }},
        Case{",context_pool=image", [](O& o) { o.context_pool = O::ContextPool::kImage; }},
        Case{",importance=attention", [](O& o) { o.importance = O::Importance::kAttention; }},
        Case{",importance=attention,lambda2=0", [](O& o) { o.importance = O::Importance::kAttention, o.lambda2 = 0; }},
        Case{",importance=attention,delta_norm=max",
             [](O& o) { o.importance = O::Importance::kAttention, o.delta_norm = O::DeltaNorm::kMax; }},
        Case{",relu=per_head", [](O& o) { o.relu_per_head = true; }},
        Case{",delta_norm=max", [](O& o) { o.delta_norm = O::DeltaNorm::kMax; }},
        Case{",delta_norm=sum", [](O& o) { o.delta_norm = O::DeltaNorm::kSum; }},
        Case{",delta_norm=minmax,relu=per_head",
             [](O& o) { o.delta_norm = O::DeltaNorm::kMinmax, o.relu_per_head = true; }},
        Case{",similarity2=affine", [](O& o) { o.similarity2 = O::StageTwoSimilarity::kAffine; }},
        Case{",similarity2=affine,delta_norm=max",
             [](O& o) { o.similarity2 = O::StageTwoSimilarity::kAffine, o.delta_norm = O::DeltaNorm::kMax; }},
        Case{",ranking=per_image", [](O& o) { o.ranking = O::Ranking::kPerImage; }},
        Case{",counts=exact_total", [](O& o) { o.counts = O::Counts::kExactTotal; }},
        Case{",counts=exact_total,ranking=per_image",
             [](O& o) { o.counts = O::Counts::kExactTotal, o.ranking = O::Ranking::kPerImage; }},
        Case{",rounding=round", [](O& o) { o.rounding = Rounding::kNearestEven; }},
        Case{",rounding=ceil", [](O& o) { o.rounding = Rounding::kCeil; }},
        Case{",row_breaks=pool", [](O& o) { o.row_breaks_compete = true; }}),
    [](const auto& test) {
      std::string name = *test.param.spec ? test.param.spec + 1 : "defaults";
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

// ---- limits ----

std::string refusal(const std::string& spec, int num_layers, const Prompt& prompt) {
  try {
    test::points_of(make_policy("catp:" + spec), facts(num_layers), *prompt);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Catp, LayersByDepth) {
  const auto context_layer = [&](int num_layers) {
    for (const ActPoint& p :
         test::points_of(make_policy("catp:keep_ratio=2/9"), facts(num_layers), *in_context_prompt()))
      if (p.site == Site::kBeforeLayer) return p.layer;
    return -1;
  };
  EXPECT_EQ(context_layer(40), 10);
  EXPECT_EQ(context_layer(32), 6);
  EXPECT_EQ(context_layer(16), 6);
  EXPECT_EQ(context_layer(14), 3);  // 2.625
  EXPECT_EQ(context_layer(8), 2);   // 1.5 to even
  EXPECT_EQ(context_layer(4), 2);
  EXPECT_EQ(refusal("keep_ratio=2/9", 3, in_context_prompt()),
            "catp: k=2 is not from 2 to 1, as a model of 3 layers needs");
  EXPECT_EQ(refusal("keep_ratio=2/9,k=7", 8, in_context_prompt()),
            "catp: k=7 is not from 2 to 6, as a model of 8 layers needs");
  EXPECT_EQ(refusal("keep_ratio=2/9,k=6", 8, in_context_prompt()), "");
  EXPECT_EQ(refusal("keep_ratio=2/9,stage1_share=1", 3, in_context_prompt()), "");
}

TEST(Catp, KeepingEverythingActsNowhere) {
  EXPECT_TRUE(test::points_of(make_policy("catp:keep_ratio=1"), facts(8), *in_context_prompt()).empty());
  EXPECT_TRUE(test::points_of(make_policy("catp:num_kept=1000"), facts(8), *in_context_prompt()).empty());
}

TEST(Catp, QueryTextIsNeededWhereItIsAsked) {
  const Prompt prompt = LayoutBuilder().image({3, 3}, 0).text(3, 0).image({3, 3}, 1).build(1);
  EXPECT_EQ(refusal("keep_ratio=2/9,query_pool=text", 8, prompt),
            "catp: query_pool=text, but the query sample has no text");
}

TEST(Catp, PinnedTokensStayThroughBothStages) {
  LayoutBuilder builder;
  builder.image({3, 3}, 0).text(3, 0).image({3, 3}, 1).text(2, 1).pin({0, 8, 12});
  const Prompt prompt = builder.build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, seed);
    const Tokens kept = kept_at_end(make_policy("catp:keep_ratio=1/3"), facts(8), prompt, signals);
    EXPECT_EQ(kept.size(), 6U);
    for (const int64_t t : {0, 8, 12}) EXPECT_TRUE(std::binary_search(kept.begin(), kept.end(), t)) << t;
  }
  EXPECT_EQ(refusal("keep_ratio=1/9", 8, prompt), "catp: the amount keeps 1 tokens of a pool in which 2 are pinned");
}

// A sequence that an earlier policy cut: text and images are found by what the layout says of each token, not by place;
// counts still refer to the unpruned images.
struct CatpBehindAnother : ::testing::Test {
  Prompt prompt = in_context_prompt();
  ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 11);
  Tokens drawn = kept_at_end(make_policy("random:keep_ratio=1/2"), facts(8), prompt, signals);

  std::map<int, Tokens> expected(const CatpOptions& options) const {
    test::CatpLoops reference(*prompt, signals, options, 3);
    reference.drop(test::image_tokens_of(*prompt), drawn);
    return reference.run_all();
  }
};

TEST_F(CatpBehindAnother, StageOne) {
  const CatpOptions options{.amount = {.keep_ratio = Fraction{1, 4}}, .k = 3, .stage1_share = {1, 1}};
  const Tokens left =
      kept_at_end(make_policy("random:keep_ratio=1/2 + " + make_catp(options)->spec()), facts(8), prompt, signals);
  EXPECT_EQ(left, expected(options)[0]);
  EXPECT_EQ(left.size(), 1U + 2U + 1U + 3U);
}

TEST_F(CatpBehindAnother, StageTwo) {
  const CatpOptions options{.amount = {.keep_ratio = Fraction{1, 4}}, .k = 3, .stage1_share = {0, 1}};
  const Tokens left =
      kept_at_end(make_policy("random:keep_ratio=1/2 + " + make_catp(options)->spec()), facts(8), prompt, signals);
  EXPECT_EQ(left, expected(options)[4]);
  EXPECT_EQ(left.size(), 4U + 3U);
}

}  // namespace
}  // namespace espalier
