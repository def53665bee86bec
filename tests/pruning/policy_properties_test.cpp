// SPDX-License-Identifier: Apache-2.0
// What every policy must hold, written once and run for each of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "tests/support/array_signals.h"
#include "tests/support/made_up_files.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using test::run;
using Prompt = std::shared_ptr<const PromptLayout>;
using Tokens = std::vector<int64_t>;

constexpr int kLayers = 8;

// A spec without its amount; "@" is where the amount goes.
struct EveryPolicy : ::testing::TestWithParam<std::string> {
  std::string spec(const std::string& amount, const std::string& common = "") const {
    std::string text = GetParam();
    if (common.empty() && text.find('@') == std::string::npos) return text;
    for (size_t at = text.find('@'); at != std::string::npos; at = text.find('@')) text.replace(at, 1, amount + common);
    return text;
  }
  static Tokens kept(const std::string& spec, const Prompt& prompt, const ArraySignals& signals) {
    return kept_at_end(make_policy(spec), facts(kLayers), prompt, signals);
  }
};

struct Request {
  Prompt prompt;
  ArraySignals signals;
};

Request request(const std::vector<GridSize>& grids, uint64_t seed) {
  LayoutBuilder builder;
  builder.text(2, -1);
  for (size_t i = 0; i < grids.size(); ++i) builder.image(grids[i], static_cast<int>(i)).text(2, static_cast<int>(i));
  const Prompt prompt = builder.build(std::max(0, static_cast<int>(grids.size()) - 1));
  return {prompt, test::random_signals(prompt->num_tokens, kLayers, 2, 6, seed)};
}

int64_t of_image(const Tokens& kept, const PromptLayout& prompt, int image) {
  const Tokens images = test::to_vector(prompt.image);
  return std::count_if(kept.begin(), kept.end(), [&](int64_t t) { return images[static_cast<size_t>(t)] == image; });
}

TEST_P(EveryPolicy, KeptIsAscendingAndShrinks) {
  const auto [prompt, signals] = request({{3, 3}, {2, 5}, {4, 4}}, 1);
  for (const char* amount : {"keep_ratio=1/3", "keep_ratio=2/3", "num_kept=4"}) {
    Tokens before = test::image_tokens_of(*prompt);
    for (const auto& point : run(make_policy(spec(amount)), facts(kLayers), prompt, signals)) {
      EXPECT_TRUE(std::is_sorted(point.kept.begin(), point.kept.end(), std::less_equal<>()));
      EXPECT_TRUE(std::includes(before.begin(), before.end(), point.kept.begin(), point.kept.end()));
      // A point that drops nothing is not visited, but for one that reads what a later one needs.
      const bool only_reads = spec(amount).starts_with("sparsevlm") && point.site == "projector_output";
      EXPECT_TRUE(only_reads || point.kept.size() < before.size());
      EXPECT_EQ(point.candidates.size(), point.scores.size());
      before = point.kept;
    }
  }
}

TEST_P(EveryPolicy, TextIsNeverDropped) {
  const auto [prompt, signals] = request({{3, 3}, {2, 5}}, 2);
  PolicyWalk walk(make_policy(spec("keep_ratio=1/4")), facts(kLayers), prompt);
  while (const ActPoint* point = walk.next()) {
    std::vector<at::Tensor> answers;
    for (const Signal& s : walk.needs()) answers.push_back(signals.answer(s, *point, walk.layout()));
    walk.act(answers);
    EXPECT_EQ(walk.layout().num_tokens() - walk.layout().num_image_tokens(), 2 + 2 * 2);
  }
}

TEST_P(EveryPolicy, KeepingAllActsNowhere) {
  const auto [prompt, signals] = request({{3, 3}, {2, 5}}, 3);
  EXPECT_TRUE(test::points_of(make_policy(spec("keep_ratio=1")), facts(kLayers), *prompt).empty());
}

TEST_P(EveryPolicy, NothingHappensWithoutImages) {
  const Prompt prompt = LayoutBuilder().text(5, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy(spec("keep_ratio=1/2")), facts(kLayers), *prompt).empty());
  EXPECT_TRUE(run(make_policy(spec("keep_ratio=1/2")), facts(kLayers), prompt, {}).empty());
}

TEST_P(EveryPolicy, OneTokenAndSixteenImages) {
  const Request one = request({{1, 1}}, 4);
  EXPECT_LE(kept(spec("keep_ratio=1/2"), one.prompt, one.signals).size(), 1U);
  const Request many = request(std::vector<GridSize>(16, {2, 3}), 5);
  const Tokens left = kept(spec("keep_ratio=1/2"), many.prompt, many.signals);
  EXPECT_EQ(left.size(), GetParam() == "none" ? 96U : 48U);
}

// All tokens alike, or without a state at all: any choice is right, but it must be one, and of the right size.
TEST_P(EveryPolicy, EqualDuplicateAndZeroStates) {
  for (const double value : {0.0, 1.0}) {
    Request equal = request({{2, 4}, {2, 4}}, 6);
    for (const auto array :
         {&ArraySignals::hidden, &ArraySignals::final_norm, &ArraySignals::key, &ArraySignals::class_attention})
      for (auto& [layer, m] : equal.signals.*array) std::fill(m.values.begin(), m.values.end(), value);
    std::fill(equal.signals.vision_output.values.begin(), equal.signals.vision_output.values.end(), value);
    for (auto& [layer, heads] : equal.signals.attention)
      for (Matrix& a : heads) a = test::causal_softmax(a.rows, [](int64_t, int64_t) { return 0.0; });
    EXPECT_EQ(kept(spec("keep_ratio=1/2"), equal.prompt, equal.signals).size(), GetParam() == "none" ? 16U : 8U);
  }
  Request duplicates = request({{2, 4}, {2, 4}}, 7);
  for (const auto array :
       {&ArraySignals::hidden, &ArraySignals::final_norm, &ArraySignals::key, &ArraySignals::class_attention})
    for (auto& [layer, m] : duplicates.signals.*array)
      for (int64_t t = 3; t < 10; t += 2)
        for (int64_t c = 0; c < m.cols; ++c) m.at(t, c) = m.at(t - 1, c);
  EXPECT_EQ(kept(spec("keep_ratio=1/2"), duplicates.prompt, duplicates.signals).size(),
            GetParam() == "none" ? 16U : 8U);
}

// Images 0 and 1, each an example with its text, change places; with them all that is known of their tokens.
TEST_P(EveryPolicy, SwappingTwoImagesSwapsTheVerdict) {
  if (GetParam().starts_with("random")) GTEST_SKIP() << "draws by the ordinal of the image";
  const auto [prompt, signals] = request({{3, 3}, {3, 3}, {2, 4}}, 8);
  const int64_t first = 2, length = 11;  // an image with its two words
  Tokens where(prompt->num_tokens);
  std::iota(where.begin(), where.end(), 0);
  for (int64_t t = 0; t < length; ++t) std::swap(where[first + t], where[first + length + t]);
  ArraySignals swapped = signals;
  for (const auto array :
       {&ArraySignals::hidden, &ArraySignals::final_norm, &ArraySignals::key, &ArraySignals::class_attention})
    for (auto& [layer, m] : swapped.*array)
      for (int64_t t = 0; t < m.rows; ++t)
        for (int64_t c = 0; c < m.cols; ++c) m.at(where[t], c) = (signals.*array).at(layer).at(t, c);
  for (int64_t t = 0; t < signals.vision_output.rows; ++t)
    for (int64_t c = 0; c < signals.vision_output.cols; ++c)
      swapped.vision_output.at(where[t], c) = signals.vision_output.at(t, c);
  for (auto& [layer, heads] : swapped.attention)
    for (size_t h = 0; h < heads.size(); ++h)
      for (int64_t q = 0; q < heads[h].rows; ++q)
        for (int64_t k = 0; k < heads[h].cols; ++k)
          heads[h].at(where[q], where[k]) = signals.attention.at(layer)[h].at(q, k);
  for (const char* amount : {"keep_ratio=1/3", "num_kept=5"}) {
    Tokens expected = kept(spec(amount), prompt, signals);
    for (int64_t& t : expected) t = where[t];
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(kept(spec(amount), prompt, swapped), expected);
  }
}

TEST_P(EveryPolicy, PinnedTokensStay) {
  LayoutBuilder builder;
  builder.text(1, 0).image({3, 3}, 0).text(2, 0).image({3, 3}, 1).text(2, 1).pin({1, 9, 13, 20});
  const Prompt prompt = builder.build(1);
  for (uint64_t seed = 1; seed < 9; ++seed) {
    const Tokens left =
        kept(spec("keep_ratio=2/3"), prompt, test::random_signals(prompt->num_tokens, kLayers, 2, 6, seed));
    for (const int64_t t : {1, 9, 13, 20}) EXPECT_TRUE(std::binary_search(left.begin(), left.end(), t)) << t;
    EXPECT_EQ(left.size(), GetParam() == "none" ? 18U : 12U);
  }
  if (GetParam() == "none") return;
  EXPECT_THROW(test::points_of(make_policy(spec("keep_ratio=1/9")), facts(kLayers), *prompt), Error);
}

TEST_P(EveryPolicy, FloorsForEachImage) {
  for (uint64_t seed = 1; seed < 9; ++seed) {
    const auto [prompt, signals] = request({{3, 3}, {3, 3}, {1, 2}, {3, 3}}, seed);
    const Tokens left = kept(spec("keep_ratio=1/3", ",min_per_image=3"), prompt, signals);
    for (const int image : {0, 1, 3}) EXPECT_GE(of_image(left, *prompt, image), 3);
    EXPECT_EQ(of_image(left, *prompt, 2), 2);
  }
  const auto [prompt, signals] = request({{3, 3}, {3, 3}}, 1);
  EXPECT_TRUE(run(make_policy(spec("keep_ratio=1/3", ",min_tokens=19")), facts(kLayers), prompt, signals).empty());
}

// Whose number of tokens is not an amount's, or whose tokens are merged; keepmask, resize and fitprune judge no token
// of a made-up run or need the depth of a recipe. All others keep what their amount says.
constexpr std::array kOtherwise = {"none",      "vtw",         "keepmask", "m3",          "hired",      "plphp",
                                   "sparsevlm", "pyramiddrop", "catp+",    "atp",         "fitprune",   "prumerge",
                                   "prumerge+", "visionzip",   "resize",   "persistence", "visionpulse"};

bool keeps_its_amount(const PolicyEntry& entry) {
  return std::ranges::find(kOtherwise, entry.name) == kOtherwise.end();
}

std::vector<std::string> open_specs() {
  std::vector<std::string> specs = {"none",
                                    "fastv:layer=3,rows=all,pool=image,@",
                                    "catp:stage1_share=1,@",
                                    "catp:stage1_share=0,ranking=per_image,@",
                                    "catp:similarity=minmax,delta_norm=minmax,@",
                                    "catp+:budget=final,@",
                                    "catp+:budget=final,query_score=both,query_cut=after,@",
                                    "attention:layer=2,@",
                                    "pyramiddrop:layers=3,@",
                                    "random:@ + fastv:pool=image,@"};
  for (const PolicyEntry& entry : policy_table()) {
    if (!keeps_its_amount(entry)) continue;
    if (entry.name != "attention") specs.push_back(std::string(entry.name) + ":@");  // its layer has no default
    for (const PolicyExample& example : entry.examples)
      specs.push_back(test::with_open_amount(std::string(example.spec)));
  }
  std::ranges::sort(specs);
  specs.erase(std::ranges::unique(specs).begin(), specs.end());
  return specs;
}

std::string name_of_case(const ::testing::TestParamInfo<std::string>& test) {
  return test::test_name(test.param);
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryPolicy, ::testing::ValuesIn(open_specs()), name_of_case);

// ---- policies whose number of tokens is not an amount's, or whose tokens are merged ----

struct EveryOtherPolicy : ::testing::TestWithParam<std::string> {
  // Source indices of all image tokens at the end, -1 for those without a place; what entered is finite.
  static Tokens left(const Prompt& prompt, const ArraySignals& signals) {
    PolicyWalk walk(make_policy(GetParam()), facts(kLayers), prompt);
    int64_t before = walk.layout().num_image_tokens();
    const int64_t text = walk.layout().num_tokens() - before;
    for (size_t i = 0; const ActPoint* point = walk.next(); ++i) {
      std::vector<at::Tensor> answers;
      for (const Signal& s : walk.needs()) answers.push_back(signals.answer(s, *point, walk.layout()));
      walk.act(answers);
      EXPECT_EQ(walk.layout().num_tokens() - walk.layout().num_image_tokens(), text);
      if (const auto merged = walk.merged(i))
        EXPECT_TRUE(merged->vectors.isfinite().all().item<bool>());
      else
        EXPECT_LE(walk.layout().num_image_tokens(), before);
      before = walk.layout().num_image_tokens();
    }
    return test::to_vector(walk.layout().source_index.index_select(0, walk.layout().image_tokens));
  }
};

TEST_P(EveryOtherPolicy, TextStaysAndWhatEntersIsFinite) {
  for (uint64_t seed = 1; seed < 5; ++seed) {
    const Request several = request({{4, 4}, {2, 6}, {4, 2}}, seed);
    EXPECT_FALSE(left(several.prompt, several.signals).empty());
  }
}

TEST_P(EveryOtherPolicy, NothingHappensWithoutImages) {
  const Prompt prompt = LayoutBuilder().text(5, 0).build(0);
  EXPECT_TRUE(test::points_of(make_policy(GetParam()), facts(kLayers), *prompt).empty());
}

TEST_P(EveryOtherPolicy, SmallestAndManyImages) {
  const Request small = request({{2, 2}}, 4);
  EXPECT_LE(left(small.prompt, small.signals).size(), 5U);
  const Request many = request(std::vector<GridSize>(16, {2, 4}), 5);
  EXPECT_GE(left(many.prompt, many.signals).size(), 16U);
}

TEST_P(EveryOtherPolicy, EqualAndZeroStates) {
  for (const double value : {0.0, 1.0}) {
    Request equal = request({{2, 4}, {2, 4}}, 6);
    for (const auto array : {&ArraySignals::hidden, &ArraySignals::key, &ArraySignals::class_attention,
                             &ArraySignals::joint_attention, &ArraySignals::vision_key})
      for (auto& [layer, m] : equal.signals.*array) std::fill(m.values.begin(), m.values.end(), value);
    for (Matrix* m : {&equal.signals.vision_output, &equal.signals.vision_class})
      std::fill(m->values.begin(), m->values.end(), value);
    EXPECT_FALSE(left(equal.prompt, equal.signals).empty());
  }
}

// Images 0 and 1 change places, and with them all that is known of their tokens.
TEST_P(EveryOtherPolicy, SwappingTwoImagesSwapsWhatIsLeft) {
  const auto [prompt, signals] = request({{4, 4}, {4, 4}, {2, 4}}, 8);
  const int64_t first = 2, length = 18;  // an image with its two words
  Tokens where(prompt->num_tokens);
  std::iota(where.begin(), where.end(), 0);
  for (int64_t t = 0; t < length; ++t) std::swap(where[first + t], where[first + length + t]);
  ArraySignals swapped = signals;
  const auto move_rows = [&](Matrix& to, const Matrix& from) {
    for (int64_t t = 0; t < from.rows; ++t)
      for (int64_t c = 0; c < from.cols; ++c) to.at(where[t], c) = from.at(t, c);
  };
  for (const auto array : {&ArraySignals::hidden, &ArraySignals::key, &ArraySignals::class_attention,
                           &ArraySignals::joint_attention, &ArraySignals::vision_key})
    for (auto& [layer, m] : swapped.*array) move_rows(m, (signals.*array).at(layer));
  move_rows(swapped.vision_output, signals.vision_output);
  for (auto& [layer, heads] : swapped.attention)
    for (size_t h = 0; h < heads.size(); ++h)
      for (int64_t q = 0; q < heads[h].rows; ++q)
        for (int64_t k = 0; k < heads[h].cols; ++k)
          heads[h].at(where[q], where[k]) = signals.attention.at(layer)[h].at(q, k);
  Tokens expected = left(prompt, signals);
  for (int64_t& t : expected) t = t < 0 ? t : where[t];
  Tokens got = left(prompt, swapped);
  std::sort(expected.begin(), expected.end());
  std::sort(got.begin(), got.end());
  // All text behind an image rates it for atp: what that is changes with the place.
  const bool is_rated_by_later_text = GetParam().starts_with("atp");
  if (!is_rated_by_later_text) {
    EXPECT_EQ(got, expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryOtherPolicy,
                         ::testing::Values("atp:theta_r=0.4,theta_s=0.8", "atp:theta_r=0.5,theta_s=0.9,norm=rank",
                                           "atp:theta_r=0.5:0.4:0.3,theta_s=1,strategy=redundant", "prumerge",
                                           "prumerge+", "prumerge:num_kept=3,neighbours=2", "visionzip:num_kept=3",
                                           "visionzip:keep_ratio=1/2,contextual=1", "m3:keep_ratio=1/4", "plphp",
                                           "hired:keep_ratio=1/2", "vtw:layer=8", "sparsevlm:num_kept=24:20:16",
                                           "sparsevlm:rule=rank_scale,scale=20,recycle=false"),
                         name_of_case);

// A name that is no policy's any more would leave nothing out.
TEST(EveryOtherPolicyList, NamesPolicies) {
  for (const char* name : kOtherwise) EXPECT_TRUE(std::ranges::count(policy_table(), name, &PolicyEntry::name)) << name;
}

}  // namespace
}  // namespace espalier
