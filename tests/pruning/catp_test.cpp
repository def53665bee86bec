// SPDX-License-Identifier: Apache-2.0
// CATP against the vectors of specs/catp.md, section 9, and against the section's pseudocode written out in float64
// loops, for every option and for requests with several images, without text, with row breaks and without examples.
#include "espalier/policies/catp.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <numeric>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using testing::ArraySignals;
using testing::cosine;
using testing::facts;
using testing::LayoutBuilder;
using testing::Matrix;
using testing::mean_of;
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

// ---- the pseudocode in loops ----

struct Reference {
  const PromptLayout& prompt;
  const ArraySignals& signals;
  CatpOptions options;
  int k;
  std::vector<Segment::Kind> kind;
  std::vector<int> image, crop, example;
  std::vector<bool> alive;
  bool has_near_tie = false;  // two gains of stage 1 closer than float32 tells apart

  Reference(const PromptLayout& p, const ArraySignals& s, CatpOptions o, int k_)
      : prompt(p), signals(s), options(std::move(o)), k(k_) {
    for (const Segment& segment : p.segments)
      for (int64_t t = segment.begin; t < segment.end; ++t) {
        kind.push_back(segment.kind);
        image.push_back(segment.image);
        crop.push_back(segment.crop);
        example.push_back(segment.example);
      }
    alive.assign(kind.size(), true);
  }

  double keep_ratio() const {
    return static_cast<double>(options.amount.keep_ratio->num) / static_cast<double>(options.amount.keep_ratio->den);
  }
  double stage1_share() const {
    return static_cast<double>(options.stage1_share.num) / static_cast<double>(options.stage1_share.den);
  }

  int64_t count(double ratio, int64_t size) const {
    double x = ratio * static_cast<double>(size);
    x = options.rounding == Rounding::kFloor  ? std::floor(x + 1e-9)
        : options.rounding == Rounding::kCeil ? std::ceil(x - 1e-9)
                                              : std::nearbyint(x);
    return std::clamp<int64_t>(static_cast<int64_t>(x), std::min<int64_t>(1, size), size);
  }

  Tokens where(const std::function<bool(int64_t)>& test) const {
    Tokens tokens;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t)
      if (alive[t] && test(t)) tokens.push_back(t);
    return tokens;
  }
  bool competes(int64_t t) const {
    return kind[t] == Segment::Kind::kPatches || (options.row_breaks_compete && kind[t] == Segment::Kind::kRowBreak);
  }
  bool in_context(int64_t t) const { return example[t] >= 0 && example[t] != prompt.query_example; }
  bool in_query(int64_t t) const { return example[t] == prompt.query_example; }
  int64_t unpruned(const std::function<bool(int64_t)>& test) const {
    int64_t n = 0;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t) n += competes(t) && test(t);
    return n;
  }

  // Drops what is not in `kept` of the tokens that competed, and row breaks that lost their row.
  void drop(const Tokens& competed, const Tokens& kept) {
    for (const int64_t t : competed) alive[t] = std::find(kept.begin(), kept.end(), t) != kept.end();
    if (options.row_breaks_compete) return;
    for (size_t t = 0; t < kind.size(); ++t) {
      if (kind[t] != Segment::Kind::kRowBreak) continue;
      bool has_patch = false;
      for (size_t p = t; p-- > 0 && kind[p] == Segment::Kind::kPatches && crop[p] > 0;) has_patch |= alive[p];
      alive[t] = has_patch;
    }
  }

  static Tokens best(std::vector<std::pair<double, int64_t>> scored, int64_t number) {
    std::stable_sort(scored.begin(), scored.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
    Tokens kept;
    for (int64_t i = 0; i < std::min<int64_t>(number, static_cast<int64_t>(scored.size())); ++i)
      kept.push_back(scored[i].second);
    std::sort(kept.begin(), kept.end());
    return kept;
  }

  void rescale(std::vector<double>& cosines) const {
    const auto [low, high] = std::minmax_element(cosines.begin(), cosines.end());
    const double l = *low, range = *high - *low;
    for (double& c : cosines) {
      if (options.similarity == ops::Similarity::kAffine) c = (1 + c) / 2;
      if (options.similarity == ops::Similarity::kClamp) c = std::max(c, 0.0);
      if (options.similarity == ops::Similarity::kMinmax) c = range < 1e-12 ? 0.5 : (c - l) / range;
    }
  }

  Tokens text_of(int i) const {
    Tokens text;
    int last = -1;
    for (int64_t t = 0; t < static_cast<int64_t>(kind.size()); ++t) {
      if (image[t] >= 0) last = image[t];
      if (kind[t] == Segment::Kind::kText && last == i && example[t] == prompt.example_of_image(i)) text.push_back(t);
    }
    return text;
  }

  Tokens stage1_of(int i) {
    const Matrix& h = signals.hidden.at(0);
    const Tokens tokens = where([&](int64_t t) { return competes(t) && image[t] == i; });
    const size_t s = tokens.size();
    std::vector<double> m, a(s, 0.0);
    for (const int64_t x : tokens)
      for (const int64_t y : tokens)
        m.push_back(cosine(h, x, {h.values.begin() + y * h.cols, h.values.begin() + (y + 1) * h.cols}));
    rescale(m);
    const Tokens text = text_of(i);
    if (!text.empty()) {
      const auto v = mean_of(h, text);
      for (size_t j = 0; j < s; ++j) a[j] = cosine(h, tokens[j], v);
      rescale(a);
    }
    const double scale = options.scale == CatpOptions::Scale::kDivMean ? 1.0 / static_cast<double>(s) : 1.0;
    std::vector<double> cover(s, 0.0);
    std::vector<bool> chosen(s, false);
    Tokens kept;
    const int64_t budget =
        count(1 - (1 - keep_ratio()) * stage1_share(), unpruned([&](int64_t t) { return image[t] == i; }));
    for (int64_t step = std::min(budget, static_cast<int64_t>(s)); step > 0; --step) {
      size_t pick = s;
      double largest = -1e300, second = -1e300;
      for (size_t j = 0; j < s; ++j) {
        double gain = options.lambda1 * a[j];
        for (size_t x = 0; x < s; ++x) gain += scale * std::max(0.0, m[x * s + j] - cover[x]);
        if (chosen[j]) continue;
        second = std::max(second, std::min(gain, largest));
        if (gain > largest + 1e-9) {
          largest = gain;
          pick = j;
        }
      }
      has_near_tie |= largest - second < 1e-4;
      chosen[pick] = true;
      kept.push_back(tokens[pick]);
      for (size_t x = 0; x < s; ++x) cover[x] = std::max(cover[x], m[x * s + pick]);
    }
    return kept;
  }

  std::vector<std::pair<double, int64_t>> context_scores(const Tokens& context) const {
    const Tokens query = where([&](int64_t t) { return in_query(t); });
    Tokens pool = query;
    if (options.query_pool == CatpOptions::QueryPool::kText)
      std::erase_if(pool, [&](int64_t t) { return kind[t] != Segment::Kind::kText; });
    if (options.query_pool == CatpOptions::QueryPool::kLast) pool = {static_cast<int64_t>(kind.size()) - 1};
    const auto vq = mean_of(signals.hidden.at(k), pool);
    const int64_t last = static_cast<int64_t>(kind.size()) - 1;
    const auto &lower = signals.attention.at(k - 2), &upper = signals.attention.at(k - 1);
    std::vector<double> growth;
    for (const int64_t c : context) {
      double mean = 0, clipped = 0, attention = 0;
      for (size_t head = 0; head < upper.size(); ++head) {
        const double d = (upper[head].at(last, c) - lower[head].at(last, c)) / static_cast<double>(upper.size());
        mean += d;
        clipped += std::max(0.0, d);
        attention += upper[head].at(last, c) / static_cast<double>(upper.size());
      }
      const bool is_plain = options.importance == CatpOptions::Importance::kAttention;
      growth.push_back(is_plain ? attention : options.relu_per_head ? clipped : std::max(0.0, mean));
    }
    const double largest = *std::max_element(growth.begin(), growth.end()),
                 least = *std::min_element(growth.begin(), growth.end());
    const double sum = std::accumulate(growth.begin(), growth.end(), 0.0);
    std::vector<std::pair<double, int64_t>> scored;
    for (size_t i = 0; i < context.size(); ++i) {
      double g = growth[i];
      if (options.delta_norm == CatpOptions::DeltaNorm::kMax) g /= largest;
      if (options.delta_norm == CatpOptions::DeltaNorm::kSum) g /= sum;
      if (options.delta_norm == CatpOptions::DeltaNorm::kMinmax) g = (g - least) / (largest - least);
      double c = cosine(signals.hidden.at(k), context[i], vq);
      if (options.similarity2 == CatpOptions::StageTwoSimilarity::kAffine) c = (1 + c) / 2;
      scored.emplace_back(g + options.lambda2 * c, context[i]);
    }
    return scored;
  }

  // Image tokens alive after each of the three steps, by name of the place ("0" for the projector's output).
  std::map<int, Tokens> run_all() {
    std::map<int, Tokens> after;
    const auto image_tokens = [&] { return where([&](int64_t t) { return competes(t); }); };
    if (stage1_share() > 0) {
      const Tokens all = image_tokens();
      Tokens kept;
      for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i)
        for (const int64_t t : stage1_of(i)) kept.push_back(t);
      drop(all, kept);
    }
    after[0] = image_tokens();
    const Tokens context = where([&](int64_t t) { return competes(t) && in_context(t); });
    const int64_t context_size = unpruned([&](int64_t t) { return in_context(t); });
    const int64_t query_size = unpruned([&](int64_t t) { return in_query(t); });
    int64_t context_kept = 0;
    if (!context.empty() && stage1_share() < 1) {
      const auto scored = context_scores(context);
      Tokens kept;
      if (options.ranking == CatpOptions::Ranking::kGlobal) {
        kept = best(scored, count(keep_ratio(), context_size));
      } else {
        for (int i = 0; i < static_cast<int>(prompt.images.size()); ++i) {
          auto own = scored;
          std::erase_if(own, [&](const auto& s) { return image[s.second] != i; });
          const Tokens of_image = best(own, count(keep_ratio(), unpruned([&](int64_t t) { return image[t] == i; })));
          kept.insert(kept.end(), of_image.begin(), of_image.end());
        }
      }
      context_kept = static_cast<int64_t>(kept.size());
      drop(context, kept);
    }
    after[k] = image_tokens();
    const Tokens query = where([&](int64_t t) { return competes(t) && in_query(t); });
    Tokens pool = where([&](int64_t t) {
      return in_context(t) && (options.context_pool == CatpOptions::ContextPool::kAll || competes(t));
    });
    if (context_size == 0) pool = where([&](int64_t t) { return example[t] >= 0 && kind[t] == Segment::Kind::kText; });
    if (!query.empty() && !pool.empty() && stage1_share() < 1) {
      const auto vc = mean_of(signals.hidden.at(k + 1), pool);
      std::vector<std::pair<double, int64_t>> scored;
      for (const int64_t q : query) scored.emplace_back(cosine(signals.hidden.at(k + 1), q, vc), q);
      int64_t number = count(keep_ratio(), query_size);
      if (options.counts == CatpOptions::Counts::kExactTotal)
        number = std::max<int64_t>(1, count(keep_ratio(), context_size + query_size) - context_kept);
      drop(query, best(scored, number));
    }
    after[k + 1] = image_tokens();
    return after;
  }
};

// What the policy leaves at the same three places.
std::map<int, Tokens> after_steps(const PolicyPtr& policy, const Prompt& prompt, const ArraySignals& signals,
                                  int num_layers, int k) {
  const auto points = run(policy, facts(num_layers), prompt, signals);
  std::map<int, Tokens> after;
  Tokens kept = testing::image_tokens_of(*prompt, policy->row_breaks_compete());
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
        const ArraySignals signals = testing::random_signals(prompt->num_tokens, 8, 3, 6, seed * 1000);
        CatpOptions options{.amount = {.keep_ratio = ratio}, .k = 3};
        GetParam().set(options);
        const PolicyPtr policy = make_catp(options);
        Reference reference(*prompt, signals, options, 3);
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
    make_policy("catp:" + spec)->points(facts(num_layers), *prompt);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(Catp, LayersByDepth) {
  const auto context_layer = [&](int num_layers) {
    for (const ActPoint& p : make_policy("catp:keep_ratio=2/9")->points(facts(num_layers), *in_context_prompt()))
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
  EXPECT_TRUE(make_policy("catp:keep_ratio=1")->points(facts(8), *in_context_prompt()).empty());
  EXPECT_TRUE(make_policy("catp:num_kept=1000")->points(facts(8), *in_context_prompt()).empty());
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
    const ArraySignals signals = testing::random_signals(prompt->num_tokens, 8, 2, 6, seed);
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
  ArraySignals signals = testing::random_signals(prompt->num_tokens, 8, 2, 6, 11);
  Tokens drawn = kept_at_end(make_policy("random:keep_ratio=1/2"), facts(8), prompt, signals);

  std::map<int, Tokens> expected(const CatpOptions& options) const {
    Reference reference(*prompt, signals, options, 3);
    reference.drop(testing::image_tokens_of(*prompt), drawn);
    return reference.run_all();
  }
};

TEST_F(CatpBehindAnother, StageOne) {
  const CatpOptions options{.amount = {.keep_ratio = Fraction{1, 4}}, .k = 3, .stage1_share = {1, 1}};
  Tokens ordinals;
  const Tokens all = testing::image_tokens_of(*prompt);
  for (const int64_t t : drawn) ordinals.push_back(std::find(all.begin(), all.end(), t) - all.begin());
  at::Tensor kept = at::empty({static_cast<int64_t>(ordinals.size())}, at::kLong);
  std::copy(ordinals.begin(), ordinals.end(), kept.data_ptr<int64_t>());
  const TokenLayout cut =
      apply_verdict(full_layout(prompt, false), {.kept = kept}, Positions::kKeep, false, "random").layout;
  const PolicyPtr policy = make_catp(options);
  const auto state = policy->begin_sequence(facts(8), *prompt);
  const ActPoint point{Site::kProjectorOutput, 0};
  const std::vector<at::Tensor> states{signals.answer(policy->needs(point, cut, state.get()).at(0), point, cut)};
  const Verdict verdict = policy->decide(point, cut, states, state.get());
  const Tokens left =
      testing::to_vector(cut.source_index.index_select(0, cut.image_tokens.index_select(0, verdict.kept)));
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
