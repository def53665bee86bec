// SPDX-License-Identifier: Apache-2.0
// A walk behind a cached prefix: the prefix's tokens come from the walk of another prompt that begins alike, and all is
// as if the whole prompt had been walked at once.
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "espalier/error.h"
#include "layout/policy_walk.h"
#include "tests/support/array_signals.h"
#include "tests/support/made_up_files.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::Matrix;
using Prompt = std::shared_ptr<const PromptLayout>;

constexpr int kLayers = 8;

struct ExamplePart {
  GridSize grid;
  bool has_tiles;
  int64_t text;
};

struct MadeUpPrompt {
  Prompt layout;
  int64_t query_begin = 0;
};

// Examples, then a query: each a list of images with text behind it. Sides are even, so that m3 finds its cells.
MadeUpPrompt prompt_of(const std::vector<std::vector<ExamplePart>>& examples) {
  LayoutBuilder builder;
  builder.text(2, -1);
  MadeUpPrompt prompt;
  for (size_t e = 0; e < examples.size(); ++e) {
    const int example = static_cast<int>(e);
    prompt.query_begin = builder.length();
    builder.text(1, example);
    for (const ExamplePart& part : examples[e]) {
      if (part.has_tiles)
        builder.tiled_image(part.grid, {1, 2}, example);
      else if (part.grid.rows > 0)
        builder.image(part.grid, example);
      builder.text(part.text, example);
    }
  }
  prompt.layout = builder.build(static_cast<int>(examples.size()) - 1);
  return prompt;
}

class Draw {
 public:
  explicit Draw(uint32_t seed) : generator_(seed) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(generator_() % static_cast<uint32_t>(n)); }
  std::vector<ExamplePart> example(int64_t fewest) {
    std::vector<ExamplePart> parts;
    for (int64_t i = below(2) + fewest; i > 0; --i)
      parts.push_back({{2 + 2 * below(2), 2 + 2 * below(3)}, below(3) == 0, 1 + below(3)});
    if (parts.empty()) parts.push_back({{0, 0}, false, 2 + below(3)});
    return parts;
  }

 private:
  std::mt19937 generator_;
};

// What is said of the first `end` tokens becomes what `from` says of them; attention of later rows stays.
void copy_front(ArraySignals& to, const ArraySignals& from, int64_t end) {
  const auto copy = [&](Matrix& a, const Matrix& b, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) a.at(r, c) = b.at(r, c);
  };
  for (const auto array : {&ArraySignals::hidden, &ArraySignals::final_norm, &ArraySignals::key,
                           &ArraySignals::class_attention, &ArraySignals::joint_attention, &ArraySignals::vision_key})
    for (auto& [layer, m] : to.*array) copy(m, (from.*array).at(layer), end, m.cols);
  copy(to.vision_output, from.vision_output, end, to.vision_output.cols);
  to.vision_class = from.vision_class;
  for (auto& [layer, heads] : to.attention)
    for (size_t h = 0; h < heads.size(); ++h) copy(heads[h], from.attention.at(layer)[h], end, end);
}

bool step(PolicyWalk& walk, const ArraySignals& signals) {
  const ActPoint* point = walk.next();
  if (!point) return false;
  std::vector<at::Tensor> answers;
  for (const Signal& s : walk.needs()) answers.push_back(signals.answer(s, *point, walk.layout()));
  walk.act(answers);
  return true;
}

void expect_equal(const PointTrace& got, const PointTrace& expected) {
  EXPECT_EQ(got.site, expected.site);
  EXPECT_EQ(got.layer, expected.layer);
  EXPECT_EQ(got.kept, expected.kept);
  EXPECT_EQ(got.kept_per_head, expected.kept_per_head);
  EXPECT_EQ(got.dropped, expected.dropped);
  EXPECT_EQ(got.candidates, expected.candidates);
  EXPECT_EQ(got.tokens_per_image, expected.tokens_per_image);
  EXPECT_EQ(got.source, expected.source);
  EXPECT_EQ(got.position_id, expected.position_id);
  ASSERT_EQ(got.scores.size(), expected.scores.size());
  for (size_t i = 0; i < got.scores.size(); ++i) EXPECT_NEAR(got.scores[i], expected.scores[i], 1e-5) << i;
  ASSERT_EQ(got.notes.size(), expected.notes.size());
  for (size_t i = 0; i < got.notes.size(); ++i) EXPECT_EQ(got.notes[i].first, expected.notes[i].first);
}

// The vectors of the tokens behind a point, -1 for those that stayed.
at::Tensor new_vectors(const PolicyWalk::Merged& merged) {
  const int64_t n = merged.before.num_tokens();
  const at::Tensor is_new = merged.index >= n;
  return merged.vectors.index_select(0, merged.index.masked_select(is_new) - n);
}

void expect_equal(const PolicyWalk& got, const PolicyWalk& expected) {
  EXPECT_EQ(got.kept_sources(), expected.kept_sources());
  const auto points = got.trace(true), wanted = expected.trace(true);
  ASSERT_EQ(points.size(), wanted.size());
  for (size_t i = 0; i < points.size(); ++i) {
    SCOPED_TRACE(points[i].site + " " + std::to_string(points[i].layer));
    expect_equal(points[i], wanted[i]);
    const auto merged = got.merged(i), wanted_merged = expected.merged(i);
    ASSERT_EQ(merged.has_value(), wanted_merged.has_value());
    if (!merged) continue;
    EXPECT_TRUE(merged->source.equal(wanted_merged->source));
    EXPECT_TRUE(merged->position_from.equal(wanted_merged->position_from));
    EXPECT_TRUE(new_vectors(*merged).allclose(new_vectors(*wanted_merged), 1e-5, 1e-5));
  }
  EXPECT_TRUE(got.layout().source_index.equal(expected.layout().source_index));
  EXPECT_TRUE(got.layout().image_tokens.equal(expected.layout().image_tokens));
  EXPECT_TRUE(got.layout().example.equal(expected.layout().example));
  EXPECT_EQ(got.layout().tokens_per_image(), expected.layout().tokens_per_image());
}

struct BehindAPrefix : ::testing::TestWithParam<std::string> {
  PolicyPtr policy = test::make_example(GetParam());

  // Whether the prefix of one prompt served the other.
  bool compare(uint32_t seed) const {
    Draw draw(seed);
    std::vector<std::vector<ExamplePart>> examples;
    for (int64_t i = 1 + draw.below(3); i > 0; --i) examples.push_back(draw.example(1));
    auto asked = examples, cached = examples;
    asked.push_back(draw.example(draw.below(2)));
    cached.push_back(draw.example(1));
    if (draw.below(2) == 0) cached.push_back(draw.example(0));  // another example, and only then a question
    const MadeUpPrompt b = prompt_of(asked), a = prompt_of(cached);
    const int64_t end = b.query_begin;
    const ArraySignals of_b = test::random_signals(b.layout->num_tokens, kLayers, 2, 6, seed);
    ArraySignals of_a = test::random_signals(a.layout->num_tokens, kLayers, 2, 6, seed + 1000);
    copy_front(of_a, of_b, end);

    PolicyWalk whole(policy, facts(kLayers), b.layout), first(policy, facts(kLayers), a.layout);
    for (size_t i = 0; i < first.boundary(); ++i) step(first, of_a);
    const auto prefix = std::make_shared<const PrefixWalk>(first.snapshot(end));
    if (!whole.fits(*prefix)) return false;
    PolicyWalk behind(policy, facts(kLayers), b.layout, prefix);
    while (step(behind, of_b)) EXPECT_FALSE(behind.has_joined());
    behind.join();
    while (step(behind, of_b)) EXPECT_TRUE(behind.has_joined());
    while (step(whole, of_b)) {
    }
    expect_equal(behind, whole);
    return true;
  }
};

TEST_P(BehindAPrefix, AllIsAsInAWalkOfTheWholePrompt) {
  int served = 0;
  for (uint32_t seed = 1; seed < 13; ++seed) {
    SCOPED_TRACE(seed);
    served += compare(seed) ? 1 : 0;
    if (HasFatalFailure()) return;
  }
  EXPECT_GE(served, 6);
}

std::vector<std::string> specs() {
  std::vector<std::string> list = {
      "divprune:keep_ratio=1/3,positions=compact",      "random:num_kept=3,min_per_image=4",
      "divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4", "catp:keep_ratio=1/4,positions=compact",
      "divprune:keep_ratio=1/2,min_tokens=5",           "vtw:layer=3,min_per_image=1"};
  for (const std::string& spec : test::examples_where([](const PolicyEntry&, const PolicyExample&) { return true; }))
    list.push_back(spec);
  return list;
}

INSTANTIATE_TEST_SUITE_P(Table, BehindAPrefix, ::testing::ValuesIn(specs()),
                         [](const auto& test) { return test::test_name(test.param); });

// Which steps a prefix may go through.
TEST(Boundary, IsTheFirstStepThatLooksAtAllOfTheRequest) {
  const MadeUpPrompt prompt = prompt_of({{{{4, 4}, false, 2}}, {{{4, 4}, false, 2}}});
  const auto boundary = [&](const char* spec) {
    const PolicyWalk walk(make_policy(spec), facts(kLayers), prompt.layout);
    return std::pair(walk.boundary(), walk.points().size());
  };
  using Steps = std::pair<size_t, size_t>;
  EXPECT_EQ(boundary("none"), Steps(0, 0));
  EXPECT_EQ(boundary("divprune:keep_ratio=1/3"), Steps(1, 1));
  EXPECT_EQ(boundary("catp:keep_ratio=2/9"), Steps(1, 3));
  EXPECT_EQ(boundary("catp:num_kept=5"), Steps(0, 3));  // a share of all tokens
  EXPECT_EQ(boundary("catp:keep_ratio=1/9,stage1_share=1"), Steps(1, 1));
  EXPECT_EQ(boundary("fastv:keep_ratio=1/2"), Steps(0, 1));
  EXPECT_EQ(boundary("vtw:layer=5"), Steps(1, 1));
  EXPECT_EQ(boundary("visionzip:num_kept=4"), Steps(1, 1));
  EXPECT_EQ(boundary("cdpruner:keep_ratio=1/4"), Steps(0, 1));
  EXPECT_EQ(boundary("cdpruner:keep_ratio=1/4,relevance=none"), Steps(1, 1));
  EXPECT_EQ(boundary("divprune:keep_ratio=1/3,min_tokens=4"), Steps(0, 1));
  EXPECT_EQ(boundary("plphp"), Steps(0, 8));
}

TEST(Prefix, EndsWhereAnExampleEndsAndServesWhatBeginsAlike) {
  const MadeUpPrompt a = prompt_of({{{{4, 4}, false, 2}}, {{{4, 4}, false, 2}}}),
                     other = prompt_of({{{{2, 8}, false, 2}}, {{{4, 4}, false, 2}}});
  const PolicyPtr policy = make_policy("divprune:keep_ratio=1/3"), twice = make_policy("divprune:keep_ratio=2/3");
  const ArraySignals signals = test::random_signals(a.layout->num_tokens, kLayers, 2, 6, 1);
  PolicyWalk walk(policy, facts(kLayers), a.layout);
  EXPECT_THROW(walk.snapshot(a.query_begin), Error);  // not at the boundary yet
  step(walk, signals);
  for (const int64_t end : {int64_t{0}, int64_t{4}, a.query_begin - 1, a.query_begin + 1})
    EXPECT_THROW(walk.snapshot(end), Error) << end;
  const auto prefix = std::make_shared<const PrefixWalk>(walk.snapshot(a.query_begin));
  EXPECT_TRUE(PolicyWalk(policy, facts(kLayers), a.layout).fits(*prefix));
  EXPECT_FALSE(PolicyWalk(policy, facts(kLayers), other.layout).fits(*prefix));
  EXPECT_FALSE(PolicyWalk(twice, facts(kLayers), a.layout).fits(*prefix));
  EXPECT_THROW(PolicyWalk(policy, facts(kLayers), other.layout, prefix), Error);
  PolicyWalk behind(policy, facts(kLayers), a.layout, prefix);
  EXPECT_THROW(behind.join(), Error);
}

}  // namespace
}  // namespace espalier
