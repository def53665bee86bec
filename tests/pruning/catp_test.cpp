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
        Case{",row_breaks=pool", [](O& o) { o.row_breaks_compete = true; }},
        // The points where catp+ differs, each by itself beside the published rest, and some of them together.
        Case{",coverage=dpp", [](O& o) { o.coverage = O::Coverage::kDpp; }},
        Case{",importance=own_text,lambda2=0", [](O& o) { o.importance = O::Importance::kOwnText, o.lambda2 = 0; }},
        Case{",importance=own_text,delta_norm=max",
             [](O& o) { o.importance = O::Importance::kOwnText, o.delta_norm = O::DeltaNorm::kMax; }},
        Case{",query_score=attention", [](O& o) { o.query_score = O::QueryScore::kAttention; }},
        Case{",query_score=text", [](O& o) { o.query_score = O::QueryScore::kText; }},
        Case{",query_score=both", [](O& o) { o.query_score = O::QueryScore::kBoth; }},
        Case{",query_score=attention,rank=next",
             [](O& o) { o.query_score = O::QueryScore::kAttention, o.rank = O::Rank::kNext; }},
        Case{",importance=attention,lambda2=0,rank=next",
             [](O& o) { o.importance = O::Importance::kAttention, o.lambda2 = 0, o.rank = O::Rank::kNext; }},
        Case{",query_cut=together", [](O& o) { o.query_cut = O::QueryCut::kTogether; }},
        Case{",query_cut=together,query_score=text,row_breaks=pool",
             [](O& o) {
               o.query_cut = O::QueryCut::kTogether, o.query_score = O::QueryScore::kText, o.row_breaks_compete = true;
             }},
        Case{",query_cut=together,counts=exact_total",
             [](O& o) { o.query_cut = O::QueryCut::kTogether, o.counts = O::Counts::kExactTotal; }},
        Case{",query_cut=together,ranking=per_image",
             [](O& o) { o.query_cut = O::QueryCut::kTogether, o.ranking = O::Ranking::kPerImage; }},
        Case{",selection=dpp,ranking=per_image",
             [](O& o) { o.selection = O::Selection::kDpp, o.ranking = O::Ranking::kPerImage; }},
        Case{",query_score=both,selection=dpp,relevance_floor=0.1,ranking=per_image",
             [](O& o) {
               o.query_score = O::QueryScore::kBoth, o.selection = O::Selection::kDpp;
               o.relevance_floor = 0.1, o.ranking = O::Ranking::kPerImage;
             }},
        Case{",budget=mean", [](O& o) { o.budget = O::BudgetOf::kMean; }},
        Case{",query_cut=together,budget=mean",
             [](O& o) { o.query_cut = O::QueryCut::kTogether, o.budget = O::BudgetOf::kMean; }},
        Case{",stage1_share=1,budget=mean",
             [](O& o) {
               o.stage1_share = {1, 1};
               o.budget = O::BudgetOf::kMean;
             }}),
    [](const auto& test) {
      std::string name = *test.param.spec ? test.param.spec + 1 : "defaults";
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

// ---- catp+ ----

// By hand: two of three tokens an image stay. r = 0.5 + score / largest score of the image.
//   image  token  score  r      |x|² after the first pick
//   1      1      .05    1.0    1 · (1 - .36)       = .64      second
//          2      .06    1.1    1.21 · (1 - .64)    = .4356    (second by its score)
//          3      .10    1.5    first
//   2      5      .03    1.0    1 · (1 - .7111)     = .2889    (second by its score)
//          6      .01    .6667  .4444 · (1 - .2778) = .3210    second
//          7      .06    1.5    first
//   query  9      .08    1.5    first
//          10     .07    1.375  1.8906 · (1 - .1600) = 1.588   second
//          11     .02    .75    .5625 · (1 - .0159) = .5536
struct CatpPlusVector : StageTwoVector {
  CatpPlusVector() {
    // Layer 2, which runs next: the texts of both examples, and the two rows of the query's text.
    const std::map<int64_t, std::map<int64_t, double>> looks = {
        {4, {{1, .05}, {2, .06}, {3, .10}}},
        {8, {{5, .03}, {6, .01}, {7, .06}, {1, .09}, {2, .01}}},
        {12, {{9, .01}, {10, .03}, {11, .12}, {3, .20}}},
        {13, {{9, .08}, {10, .07}, {11, .02}, {2, .30}, {5, .25}}}};
    for (const double side : {-0.01, 0.01}) {  // two heads whose mean it is
      Matrix a(14, 14);
      for (const auto& [row, columns] : looks)
        for (const auto& [column, look] : columns) a.at(row, column) = look + side;
      signals.attention[2].push_back(a);
    }
  }
  std::vector<PointTrace> points(const std::string& options) const {
    return run(make_policy("catp+:keep_ratio=2/3,budget=final,stage1_share=0" + options), facts(4), prompt, signals);
  }
  Tokens query(const std::string& options) const {
    Tokens kept = points(options).at(0).kept;
    std::erase_if(kept, [](int64_t t) { return t < 9; });
    return kept;
  }
};

TEST_F(CatpPlusVector, ScoresAndKeptTokens) {
  const auto points = this->points("");
  ASSERT_EQ(points.size(), 1U);
  EXPECT_EQ(points[0].layer, 2);
  EXPECT_EQ(points[0].candidates, (Tokens{1, 2, 3, 5, 6, 7, 9, 10, 11}));
  expect_scores(points[0], {.05, .06, .10, .03, .01, .06, .08, .07, .02});
  EXPECT_EQ(points[0].kept, (Tokens{1, 3, 6, 7, 9, 10}));
}

TEST_F(CatpPlusVector, VariantsThatDiffer) {
  EXPECT_EQ(points(",selection=top").at(0).kept, (Tokens{2, 3, 5, 7, 9, 10}));
  // Of rows 12 and 13: .045, .05, .07, so r = 1.143, 1.214, 1.5; behind 11, 1.306 · .984 beats 1.474 · .612.
  EXPECT_EQ(query(",query_score=text"), (Tokens{9, 11}));
  // 1 and .643, .875 and .714, .25 and 1.
  EXPECT_EQ(query(",query_score=both"), (Tokens{9, 11}));
  expect_scores(points(",query_score=both").at(0), {.05, .06, .10, .03, .01, .06, 1, .875, 1});
  // The last row looks at 2 and 5.
  Tokens examples = points(",importance=attention,selection=top").at(0).kept;
  EXPECT_TRUE(std::ranges::binary_search(examples, 2) && std::ranges::binary_search(examples, 5));
  // Far above 1, the floor leaves diversity alone.
  EXPECT_EQ(query(",relevance_floor=1000"), (Tokens{9, 11}));
}

const Prompt& odd_prompt() {  // a system picture; two pictures in an example; a query of two pictures
  static const Prompt prompt = LayoutBuilder()
                                   .text(1, -1)
                                   .image({2, 2}, -1)
                                   .text(2, -1)
                                   .image({2, 3}, 0)
                                   .text(2, 0)
                                   .image({3, 3}, 0)
                                   .text(3, 0)
                                   .image({3, 4}, 1)
                                   .image({2, 4}, 1)
                                   .text(3, 1)
                                   .build(1);
  return prompt;
}

struct PlusCase {
  const char* spec;
  void (*set)(CatpPlusOptions&);
};

struct CatpPlusAgainstLoops : ::testing::TestWithParam<PlusCase> {};

TEST_P(CatpPlusAgainstLoops, EveryStepAgrees) {
  const NamedPrompt prompts[] = {
      {"in context", in_context_prompt()},
      {"tiled", tiled_prompt()},
      {"odd", odd_prompt()},
      {"no example", LayoutBuilder().text(2, -1).image({3, 4}, 0).text(4, 0).build(0)},
      {"no text at all", LayoutBuilder().text(2, -1).image({3, 4}, 0).build(0)},
      {"text-only examples", LayoutBuilder().text(2, -1).text(3, 0).image({3, 4}, 1).text(2, 1).build(1)},
      {"query without image", LayoutBuilder().image({3, 3}, 0).text(3, 0).text(4, 1).build(1)},
  };
  std::map<std::string, int> compared;
  for (const auto& [name, prompt] : prompts)
    for (const Fraction ratio : {Fraction{2, 9}, Fraction{1, 2}, Fraction{81, 100}})
      for (uint64_t seed = 1; seed <= 3; ++seed) {
        const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 3, 6, seed * 1000);
        CatpPlusOptions options;
        options.amount.keep_ratio = ratio;
        GetParam().set(options);
        const int k = options.k.value_or(2);
        const PolicyPtr policy = make_catp_plus(options);
        test::CatpLoops reference(*prompt, signals, options, k);
        const auto expected = reference.run_all();
        const std::string text =
            "catp+:keep_ratio=" + std::to_string(ratio.num) + "/" + std::to_string(ratio.den) + GetParam().spec;
        EXPECT_EQ(make_policy(text)->spec(), policy->spec());
        if (reference.has_near_tie) continue;
        EXPECT_EQ(after_steps(policy, prompt, signals, 8, k), expected)
            << policy->spec() << " on " << name << ", seed " << seed;
        ++compared[name];
      }
  for (const auto& [name, prompt] : prompts) EXPECT_GE(compared[name], 2) << name;  // of 9
}

using P = CatpPlusOptions;
INSTANTIATE_TEST_SUITE_P(
    Options, CatpPlusAgainstLoops,
    ::testing::Values(
        PlusCase{"", [](P&) {}},  //
        PlusCase{",k=3", [](P& o) { o.k = 3; }},
        PlusCase{",k=3,rank=next", [](P& o) { o.k = 3, o.rank = P::Rank::kNext; }},
        PlusCase{",rank=previous", [](P& o) { o.rank = P::Rank::kPrevious; }},
        PlusCase{",query_score=text", [](P& o) { o.query_score = P::QueryScore::kText; }},
        PlusCase{",query_score=both,relevance_floor=0",
                 [](P& o) { o.query_score = P::QueryScore::kBoth, o.relevance_floor = 0; }},
        PlusCase{",query_score=cosine,importance=growth",
                 [](P& o) { o.query_score = P::QueryScore::kCosine, o.importance = P::Importance::kGrowth; }},
        PlusCase{",query_cut=after,k=4", [](P& o) { o.query_cut = P::QueryCut::kAfter, o.k = 4; }},
        PlusCase{",selection=top", [](P& o) { o.selection = P::Selection::kTop; }},
        PlusCase{",selection=top,ranking=global",
                 [](P& o) { o.selection = P::Selection::kTop, o.ranking = P::Ranking::kGlobal; }},
        PlusCase{",coverage=facility,lambda1=0.2", [](P& o) { o.coverage = P::Coverage::kFacility, o.lambda1 = 0.2; }},
        PlusCase{",lambda2=0.6", [](P& o) { o.lambda2 = 0.6; }},
        PlusCase{",budget=final,rounding=ceil",
                 [](P& o) { o.budget = P::BudgetOf::kFinal, o.rounding = Rounding::kCeil; }},
        PlusCase{",row_breaks=pool", [](P& o) { o.row_breaks_compete = true; }},
        PlusCase{",stage1_share=1",
                 [](P& o) {
                   o.stage1_share = {1, 1};
                 }}),
    [](const auto& test) {
      std::string name = *test.param.spec ? test.param.spec + 1 : "defaults";
      for (char& c : name)
        if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
      return name;
    });

TEST(CatpPlus, IsThePresetOfTheOptions) {
  const std::string spelled =
      "catp:keep_ratio=2/9,k=3,coverage=dpp,lambda2=0,importance=own_text,query_score=attention,query_cut=together,"
      "selection=dpp,ranking=per_image,budget=mean";
  const Prompt prompt = in_context_prompt();
  const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 3, 6, 5);
  EXPECT_EQ(after_steps(make_policy(spelled), prompt, signals, 8, 3),
            after_steps(make_policy("catp+:keep_ratio=2/9,k=3"), prompt, signals, 8, 3));
  EXPECT_EQ(make_policy("catp+:keep_ratio=2/9")->spec(), "catp+:keep_ratio=2/9");
  EXPECT_EQ(make_policy("catp+:keep_ratio=2/9,lambda2=0.6,selection=top")->spec(),
            "catp+:keep_ratio=2/9,lambda2=0.6,selection=top");
}

// Which layer is read: the one before the cut, but never 0 or 1.
TEST(CatpPlus, LayerThatIsRead) {
  const auto layer = [](const std::string& options, int num_layers) {
    PolicyWalk walk(make_policy("catp+:keep_ratio=2/9,stage1_share=0,budget=final" + options), facts(num_layers),
                    in_context_prompt());
    for (const Signal& signal : walk.needs())
      if (const auto* probe = std::get_if<AttentionProbe>(&signal)) return std::pair(walk.next()->layer, probe->layer);
    return std::pair(-1, -1);
  };
  EXPECT_EQ(layer("", 8), std::pair(2, 2));
  EXPECT_EQ(layer("", 32), std::pair(6, 5));
  EXPECT_EQ(layer(",k=3", 8), std::pair(3, 2));
  EXPECT_EQ(layer(",k=3,rank=next", 8), std::pair(3, 3));
  EXPECT_EQ(layer(",rank=previous", 8), std::pair(2, 1));
}

TEST(CatpPlus, PinsAndFloorsAreForced) {
  const Prompt prompt =
      LayoutBuilder().image({3, 3}, 0).text(3, 0).image({3, 3}, 1).text(2, 1).pin({0, 8, 12}).build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, seed);
    const Tokens kept = kept_at_end(make_policy("catp+:keep_ratio=1/3"), facts(8), prompt, signals);
    EXPECT_EQ(kept.size(), 4U);  // 2.57 of 9 each
    for (const int64_t t : {0, 8, 12}) EXPECT_TRUE(std::ranges::binary_search(kept, t)) << t;
    const Tokens floored = kept_at_end(make_policy("catp+:keep_ratio=1/3,min_per_image=5"), facts(8), prompt, signals);
    EXPECT_EQ(floored.size(), 10U);
  }
}

// Pictures of equal patches: L has rank 1, and relevance decides the rest.
TEST(CatpPlus, EqualPatchesAreKeptByRelevance) {
  const Prompt prompt = LayoutBuilder().image({3, 3}, 0).text(3, 0).image({3, 3}, 1).text(2, 1).build(1);
  ArraySignals signals = test::random_signals(prompt->num_tokens, 8, 2, 6, 3);
  for (auto& [layer, h] : signals.hidden) std::fill(h.values.begin(), h.values.end(), 1.0);
  const auto points = run(make_policy("catp+:keep_ratio=4/9,stage1_share=0,budget=final"), facts(8), prompt, signals);
  ASSERT_EQ(points.size(), 1U);
  std::vector<std::pair<double, int64_t>> first, second;
  for (size_t i = 0; i < 18; ++i) (i < 9 ? first : second).emplace_back(points[0].scores[i], points[0].candidates[i]);
  Tokens expected = test::CatpLoops::best(first, 4);
  const Tokens of_query = test::CatpLoops::best(second, 4);
  expected.insert(expected.end(), of_query.begin(), of_query.end());
  EXPECT_EQ(points[0].kept, expected);
}

TEST(CatpPlus, WhatLeavesAnotherOptionWithoutMeaningIsRefused) {
  const auto refusal = [](const std::string& spec) -> std::string {
    try {
      make_policy(spec);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_EQ(refusal("catp:keep_ratio=1/2,selection=dpp"),
            "catp: selection=dpp chooses in each image by itself: it takes ranking=per_image");
  EXPECT_EQ(refusal("catp:keep_ratio=1/2,rank=next"),
            "catp: rank=next says whose attention counts, and importance=growth,query_score=cosine reads none");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,lambda1=0.2"),
            "catp+: lambda1, similarity and scale shape coverage=facility, and coverage=dpp takes none of them");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,selection=top,relevance_floor=1"),
            "catp+: relevance_floor is part of selection=dpp, and selection=top does not take it");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,counts=exact_total"),
            "catp+: counts=exact_total gives the query's images one number, and here each has its own");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,stage1_share=1/3"),
            "catp+: budget=mean splits the amount itself: stage1_share is 1 or left out");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,relu=per_head"),
            "catp+: relu=per_head clips growth, which importance=own_text does not take");
  EXPECT_EQ(refusal("catp+:keep_ratio=1/2,relevance_floor=-1"), "catp+: relevance_floor=-1 is below 0");
}

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
