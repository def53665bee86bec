// SPDX-License-Identifier: Apache-2.0
// The sampler against probabilities from brute force, in Transformers' order of processors.
#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "espalier/error.h"
#include "tests/runtime/scratch_folder.h"

namespace espalier {
namespace {

using test::expect_says;
using test::message_of;

int32_t next(Sampler& sampler, std::vector<float> logits) {
  return sampler.next(logits);
}

TEST(Sampler, GreedyTiesGoToTheLowerId) {
  Sampler greedy({}, 0, {});
  EXPECT_EQ(next(greedy, {1, 3, 3, 2, 3}), 1);
  EXPECT_EQ(next(greedy, {-1, -1}), 0);
  EXPECT_EQ(next(greedy, {-INFINITY, -5}), 1);
}

// docs/specs/models.md 9: score/p if positive, score·p if negative, once for each distinct id of prompt and answer.
TEST(Sampler, RepetitionPenalty) {
  const std::vector<int32_t> prompt = {1, 1, 3, 4, 900, -1};  // ids past the logits do no harm
  Sampler sampler({.repetition_penalty = 2.0}, 0, prompt);
  std::vector<float> logits = {1, 8, 3, -2, 0, 3.5};
  EXPECT_EQ(sampler.next(logits), 1);  // 8 / 2 is still the best
  EXPECT_EQ(logits, (std::vector<float>{1, 4, 3, -4, 0, 3.5}));
  logits = {1, 6.5, 3, -2, 0, 3.5};
  EXPECT_EQ(sampler.next(logits), 5);  // 3.25 is not; that a prompt's id was drawn does not halve it again
  logits = {1, 1, 3, -2, 0, 5};
  EXPECT_EQ(sampler.next(logits), 2);  // the answer's own 5 counts from now on
  EXPECT_EQ(logits, (std::vector<float>{1, 0.5, 3, -4, 0, 2.5}));
}

TEST(Sampler, PenaltyBelowOneFavoursRepetition) {
  const std::vector<int32_t> prompt = {0};
  Sampler sampler({.repetition_penalty = 0.5}, 0, prompt);
  std::vector<float> logits = {2, 3};
  EXPECT_EQ(sampler.next(logits), 0);
}

// ---- distributions ----

// Temperature, then top-k, then top-p, each as Transformers' warper of that name does it: top-p takes away, from the
// worst upwards, what together holds no more than 1 - p.
std::vector<double> probabilities(const std::vector<float>& logits, const SamplingRules& r) {
  const size_t n = logits.size();
  std::vector<double> score(logits.begin(), logits.end());
  for (double& s : score) s /= r.temperature;
  std::vector<size_t> ascending(n);
  std::iota(ascending.begin(), ascending.end(), 0);
  std::sort(ascending.begin(), ascending.end(), [&](size_t a, size_t b) { return score[a] < score[b]; });
  if (r.top_k > 0)
    for (size_t i = 0; i + static_cast<size_t>(r.top_k) < n; ++i) score[ascending[i]] = -INFINITY;
  const auto softmax = [&] {
    double sum = 0;
    std::vector<double> p(n);
    for (size_t i = 0; i < n; ++i) sum += p[i] = std::exp(score[i]);
    for (double& value : p) value /= sum;
    return p;
  };
  const std::vector<double> p = softmax();
  double cumulated = 0;
  for (size_t i = 0; i + 1 < n; ++i) {
    cumulated += p[ascending[i]];
    if (cumulated <= 1 - r.top_p) score[ascending[i]] = -INFINITY;
  }
  return softmax();
}

double chi_square(const std::vector<int>& counts, const std::vector<double>& p, int draws) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i)
    if (p[i] > 0) sum += (counts[i] - draws * p[i]) * (counts[i] - draws * p[i]) / (draws * p[i]);
  return sum;
}

const std::vector<float> kLogits = {0.3f, 2.1f, -1.0f, 1.4f, 0.9f, -0.2f, 1.9f, 0.0f};

class SamplingTest : public testing::TestWithParam<SamplingRules> {};

TEST_P(SamplingTest, DrawsFollowTheProbabilities) {
  const std::vector<double> expected = probabilities(kLogits, GetParam());
  constexpr int kDraws = 40000;
  Sampler sampler(GetParam(), 7, {});
  std::vector<int> counts(kLogits.size());
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(next(sampler, kLogits))];
  for (size_t i = 0; i < counts.size(); ++i)
    EXPECT_TRUE(expected[i] > 0 || counts[i] == 0) << "token " << i << " is out of the set";
  EXPECT_LT(chi_square(counts, expected, kDraws), 30) << "7 degrees of freedom: 1 in 10,000";
}

// Each request has a generator of its own; neighbouring seeds must not give neighbouring first tokens.
TEST_P(SamplingTest, FirstDrawsOfManySeedsFollowThemToo) {
  const std::vector<double> expected = probabilities(kLogits, GetParam());
  constexpr int kSeeds = 20000;
  std::vector<int> counts(kLogits.size());
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    Sampler sampler(GetParam(), seed, {});
    ++counts[static_cast<size_t>(next(sampler, kLogits))];
  }
  EXPECT_LT(chi_square(counts, expected, kSeeds), 30);
}

INSTANTIATE_TEST_SUITE_P(
    Rules, SamplingTest,
    testing::Values(SamplingRules{.do_sample = true}, SamplingRules{.do_sample = true, .temperature = 0.5},
                    SamplingRules{.do_sample = true, .temperature = 3}, SamplingRules{.do_sample = true, .top_k = 3},
                    SamplingRules{.do_sample = true, .top_k = 1}, SamplingRules{.do_sample = true, .top_k = 100},
                    SamplingRules{.do_sample = true, .top_p = 0.5}, SamplingRules{.do_sample = true, .top_p = 0.9},
                    SamplingRules{.do_sample = true, .top_p = 1e-9},
                    SamplingRules{.do_sample = true, .temperature = 1.7, .top_k = 5, .top_p = 0.8}),
    [](const auto& rules) { return "Case" + std::to_string(rules.index); });

TEST(Sampler, SameSeedSameTokensAnotherSeedOthers) {
  const SamplingRules rules{.do_sample = true};
  const auto tokens = [&](uint64_t seed) {
    Sampler sampler(rules, seed, {});
    std::vector<int32_t> drawn;
    for (int i = 0; i < 30; ++i) drawn.push_back(next(sampler, kLogits));
    return drawn;
  };
  EXPECT_EQ(tokens(3), tokens(3));
  EXPECT_NE(tokens(3), tokens(4));
  EXPECT_NE(tokens(0), tokens(1));
}

TEST(Sampler, SmallestTemperatureIsArgmax) {
  Sampler sampler({.do_sample = true, .temperature = 1e-6}, 1, {});  // what Qwen2.5-VL ships
  for (int i = 0; i < 100; ++i) EXPECT_EQ(next(sampler, kLogits), 1);
}

TEST(Sampler, ImpossibleTokensAreNeverDrawn) {
  Sampler sampler({.do_sample = true}, 1, {});
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(next(sampler, {-INFINITY, 0, -INFINITY}), 1);
}

// ---- log-probabilities ----

// Against log_softmax in float64, written out.
TEST(Logprobs, AreLogSoftmaxOfTheLogits) {
  const std::vector<float> logits = {3.f, -40.f, 3.f, 80.5f, 80.25f, 0.f, -INFINITY};
  const auto expected = [&](size_t token) {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - 80.5);
    return static_cast<double>(logits[token]) - 80.5 - std::log(sum);
  };
  const TokenLogprobs some = logprobs_of(logits, 5, 4);
  EXPECT_EQ(some.id, 5);
  EXPECT_NEAR(some.logprob, expected(5), 1e-5);
  ASSERT_EQ(some.top.size(), 4U);
  const std::vector<int32_t> order = {3, 4, 0, 2};  // ties to the lower id
  for (size_t i = 0; i < order.size(); ++i) {
    EXPECT_EQ(some.top[i].id, order[i]);
    EXPECT_NEAR(some.top[i].logprob, expected(static_cast<size_t>(order[i])), 1e-5);
  }
  EXPECT_TRUE(logprobs_of(logits, 0, 0).top.empty());
  EXPECT_EQ(logprobs_of(logits, 0, 20).top.size(), logits.size());
  EXPECT_EQ(logprobs_of(logits, 6, 0).logprob, -INFINITY);
}

// ---- rules ----

TEST(SamplingRules, UnsetOptionsComeFromTheCheckpoint) {
  GenerationConfig checkpoint;
  checkpoint.do_sample = true;
  checkpoint.temperature = 0.2;
  checkpoint.top_k = 7;
  checkpoint.top_p = 0.3;
  checkpoint.repetition_penalty = 1.05;
  SamplingRules r = sampling_rules({}, checkpoint);
  EXPECT_TRUE(r.do_sample);
  EXPECT_EQ(r.temperature, 0.2);
  EXPECT_EQ(r.top_k, 7);
  EXPECT_EQ(r.top_p, 0.3);
  EXPECT_EQ(r.repetition_penalty, 1.05);
  GenerationOptions own;
  own.temperature = 2;
  own.top_k = 0;
  own.top_p = 1;
  own.repetition_penalty = 1;
  r = sampling_rules(own, checkpoint);
  EXPECT_EQ(r.temperature, 2);
  EXPECT_EQ(r.top_k, 0);
  EXPECT_EQ(r.top_p, 1);
  EXPECT_EQ(r.repetition_penalty, 1);
}

// The penalty is no sampling option: it stays on without sampling, and only `greedy` turns it off.
TEST(SamplingRules, PenaltyStaysOnWithoutSampling) {
  GenerationConfig checkpoint;
  checkpoint.do_sample = true;
  checkpoint.repetition_penalty = 1.05;
  GenerationOptions options;
  options.do_sample = false;
  EXPECT_FALSE(sampling_rules(options, checkpoint).do_sample);
  EXPECT_EQ(sampling_rules(options, checkpoint).repetition_penalty, 1.05);
  options.greedy = true;
  EXPECT_EQ(sampling_rules(options, checkpoint).repetition_penalty, 1.0);
  options.do_sample = true;
  EXPECT_FALSE(sampling_rules(options, checkpoint).do_sample);
}

TEST(SamplingRules, ASamplingOptionAsksForSampling) {
  GenerationOptions options;
  EXPECT_FALSE(sampling_rules(options, {}).do_sample);
  options.top_p = 0.9;
  EXPECT_TRUE(sampling_rules(options, {}).do_sample);
  options.do_sample = false;
  EXPECT_FALSE(sampling_rules(options, {}).do_sample);
}

TEST(SamplingRules, RefusesValuesOutOfRange) {
  const auto refused = [](const std::function<void(GenerationOptions&)>& set) {
    GenerationOptions options;
    set(options);
    return message_of<Error>([&] { sampling_rules(options, {}); });
  };
  expect_says(refused([](auto& o) { o.temperature = 0; }), {"temperature", "above 0", "0.0"});
  expect_says(refused([](auto& o) { o.temperature = -1; }), {"temperature", "-1"});
  expect_says(refused([](auto& o) { o.temperature = NAN; }), {"temperature", "nan"});
  expect_says(refused([](auto& o) { o.top_k = -1; }), {"top_k", "0 or more", "-1"});
  expect_says(refused([](auto& o) { o.top_p = 0; }), {"top_p", "up to 1"});
  expect_says(refused([](auto& o) { o.top_p = 1.01; }), {"top_p", "1.01"});
  expect_says(refused([](auto& o) { o.repetition_penalty = 0; }), {"repetition_penalty", "above 0"});
}

}  // namespace
}  // namespace espalier
