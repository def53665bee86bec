// SPDX-License-Identifier: Apache-2.0
// Calibration: the vectors of docs/specs/vtw.md (section 10), and runs on the tiny model whose recipes the policies
// take.
#include "recording/fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

#include "espalier/error.h"
#include "runtime/generate.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using test::expect_says;
using test::message_of;
using test::tiny_llava;

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p)));
  return logits;
}
double kl(const std::vector<double>& of, const std::vector<double>& from) {
  return kl_divergence(logits_of(of), logits_of(from));
}

TEST(VtwVectors, V1) {
  const std::vector<double> p = {.5, .25, .25};
  const std::vector<double> found = {kl({.25, .5, .25}, p), kl({.5, .25, .25}, p), kl({.25, .25, .5}, p)};
  EXPECT_NEAR(found[0], .173286795, 1e-7);
  EXPECT_NEAR(found[1], 0, 1e-7);
  EXPECT_NEAR(found[2], .173286795, 1e-7);
  EXPECT_EQ(first_within(found, 5, 32, .01), 6);
  EXPECT_EQ(first_within(found, 5, 32, 1), 5);
  EXPECT_EQ(first_within(std::vector<double>{found[0], found[2]}, 5, 32, .01), 32);
}

TEST(VtwVectors, V2AndV3) {
  const std::vector<double> p1 = {.5, .25, .25}, p2 = {.8, .1, .1};
  const std::vector<double> mean = {(kl({.25, .25, .5}, p1) + kl(p2, p2)) / 2, (kl(p1, p1) + kl({.1, .1, .8}, p2)) / 2};
  EXPECT_NEAR(mean[0], .086643398, 1e-7);
  EXPECT_NEAR(mean[1], .727804540, 1e-7);
  EXPECT_EQ(first_within(mean, 5, 32, .1), 5);
  const std::vector<float> full = {2, 1, 0, 0};
  const std::vector<std::vector<float>> candidates = {{0, 1, 2, 0}, {1, 1, 1, 0}, {1.9F, 1.05F, 0, 0}, {2, 1, 0, 0}};
  const double of[] = {1.055402292, .279528409, .002144057, 0}, from[] = {1.055402292, .248172737, .002118553, 0};
  std::vector<double> found;
  for (size_t i = 0; i < 4; ++i) {
    found.push_back(kl_divergence(candidates[i], full));
    EXPECT_NEAR(found[i], of[i], 1e-7);
    EXPECT_NEAR(kl_divergence(full, candidates[i]), from[i], 1e-7);
  }
  EXPECT_EQ(first_within(found, 5, 32, .003), 7);
  EXPECT_EQ(first_within(found, 5, 32, .26), 7);
}

Calibration prompts(std::vector<int> shots) {
  const size_t number = shots.size();
  return {number, [shots = std::move(shots)](size_t i) { return test::in_context_prompt(shots[i]); }, {}};
}

Result run(const std::string& policy, int shots) {
  Request request{
      .prompt = test::in_context_prompt(shots), .policy = policy, .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 1;
  return generate(tiny_llava(), request);
}

TEST(Fit, VtwRecipesAreTaken) {
  const VtwFit fit = fit_vtw(tiny_llava(), prompts({1, 0}), 1e9, 3);
  ASSERT_EQ(fit.kl.size(), 5U);
  for (const double value : fit.kl) EXPECT_GE(value, 0);
  EXPECT_EQ(fit.layer, 3);
  EXPECT_EQ(fit_vtw(tiny_llava(), prompts({1}), 0, 5).layer, 8);  // nothing is that close
  const test::ScratchFolder folder;
  folder.write("vtw.json", vtw_recipe_json(tiny_llava(), fit, 1e9));
  const Result result = run("vtw:recipe=" + (folder.path() / "vtw.json").string(), 1);
  ASSERT_EQ(result.points.size(), 1U);
  EXPECT_EQ(result.points[0].layer, 3);
  expect_says(message_of<Error>([] { fit_vtw(tiny_llava(), prompts({1}), 0.1, 8); }), {"layer 8", "0 to 7"});
}

TEST(Fit, FitpruneRecipesMeetTheirBudgetAndAreTaken) {
  const FitpruneFit fit = fit_fitprune(tiny_llava(), prompts({1, 1}), 0.4);
  const Json json = Json::parse(fitprune_recipe_json(tiny_llava(), fit, 0.4));
  const auto deleted = json.at("delete").get<std::vector<int64_t>>();
  ASSERT_EQ(deleted.size(), 8U);
  const int64_t sum = std::accumulate(deleted.begin(), deleted.end(), int64_t{0});
  EXPECT_GT(sum, 0);
  EXPECT_LE(sum, fit.num_visual);
  // Two equal prompts: no floor of a mean between the budget and the recipe, but a layer that stopped early.
  EXPECT_GT(fit.fitted.achieved, 0.3);
  const test::ScratchFolder folder;
  folder.write("fitprune.json", json.dump());
  const Result result = run("fitprune:recipe=" + (folder.path() / "fitprune.json").string(), 1);
  EXPECT_EQ(std::ssize(result.kept), fit.num_visual - sum);
  expect_says(message_of<Error>([] { fit_fitprune(tiny_llava(), prompts({1, 0}), 0.4); }), {"same number"});
}

TEST(Fit, AtpThresholdsComeNearTheWantedMean) {
  const AtpFit fit = fit_atp(tiny_llava(), prompts({2, 0}), "atp:strategy=redundant", 8);
  double sum = 0;
  int64_t entries = 0;
  for (const int shots : {2, 0})
    for (const auto& layer : run(fit.spec, shots).stats.image_tokens_per_layer)
      for (const int64_t tokens : layer) sum += static_cast<double>(tokens), ++entries;
  EXPECT_NEAR(sum / static_cast<double>(entries), fit.mean_tokens, 1e-9);
  EXPECT_NEAR(fit.mean_tokens, 8, 1);
  EXPECT_THROW(fit_atp(tiny_llava(), prompts({0}), "atp:theta_r=0.5", 20), Error);
  EXPECT_THROW(fit_atp(tiny_llava(), prompts({0}), "fastv:keep_ratio=1/2", 20), Error);
  EXPECT_THROW(fit_atp(tiny_llava(), prompts({0}), "atp", 9999), Error);
}

}  // namespace
}  // namespace espalier
