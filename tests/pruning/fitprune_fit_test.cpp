// SPDX-License-Identifier: Apache-2.0
// Fitting a FitPrune recipe against the vectors of docs/specs/fitprune.md (section 10), on maps that are cut and
// normalised again instead of a model that runs again.
#include "pruning/fitprune_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "espalier/policies/fitprune.h"

namespace espalier {
namespace {

using Counts = std::vector<int64_t>;
using Numbers = std::vector<double>;

TEST(FitpruneFit, PrefixesOfV1) {
  const Numbers cross = {.125, .25, .5, .125}, self = {.5, .125, .125, .25}, uniform(4, .25);
  EXPECT_EQ(fitprune_deletable(cross, self, 1, 1, .25), Counts{});
  EXPECT_EQ(fitprune_deletable(cross, self, 1, 1, .5), (Counts{1, 3}));
  EXPECT_EQ(fitprune_deletable(uniform, uniform, 1, 1, 0), Counts{});
  EXPECT_EQ(fitprune_deletable(uniform, uniform, 1, 1, .5), (Counts{2, 3}));
  EXPECT_EQ(fitprune_deletable(uniform, uniform, 1, 1, 1), (Counts{0, 1, 2, 3}));
  EXPECT_EQ(fitprune_deletable(uniform, uniform, 2, 2, .25), Counts{});  // less is there than must stay
}

// V2: four layers, two heads, one system token, eight visual ones, three of text.
struct Maps {
  static constexpr int64_t kLayers = 4, kHeads = 2, kTokens = 12, kVisual = 8;

  // Softmax of the row over what is kept, the largest head.
  static Numbers received(int64_t layer, int64_t sample, const Counts& kept, bool from_text) {
    Counts columns = {0};
    for (const int64_t v : kept) columns.push_back(1 + v);
    for (int64_t t = 9; t < kTokens; ++t) columns.push_back(t);
    Counts rows;
    for (const int64_t c : columns)
      if (from_text ? c >= 9 : c >= 1 && c < 9) rows.push_back(c);
    Numbers out;
    for (const int64_t v : kept) {
      double sum = 0;
      for (const int64_t q : rows) {
        double largest = 0;
        for (int64_t h = 0; h < kHeads; ++h) {
          const auto e = [&](int64_t k) {
            return k > q ? 0.0
                         : std::exp(
                               static_cast<double>((11 * layer + 7 * h + 3 * q + 5 * k + 2 * sample + k * h) % 17) / 4);
          };
          double all = 0;
          for (const int64_t c : columns) all += e(c);
          largest = std::max(largest, e(1 + v) / all);
        }
        sum += largest;
      }
      out.push_back(sum / static_cast<double>(rows.size()));
    }
    return out;
  }
  static double mass(int64_t layer, int64_t sample, bool from_text) {
    Counts all(kVisual);
    std::iota(all.begin(), all.end(), 0);
    const Numbers r = received(layer, sample, all, from_text);
    return std::accumulate(r.begin(), r.end(), 0.0);
  }
  static FitpruneCounts counts_at(double alpha) {
    FitpruneCounts counts;
    for (int64_t sample = 0; sample < 2; ++sample) {
      Counts kept(kVisual), of_layers;
      std::iota(kept.begin(), kept.end(), 0);
      for (int64_t layer = 0; layer < kLayers; ++layer) {
        const Counts gone =
            fitprune_deletable(received(layer, sample, kept, true), received(layer, sample, kept, false),
                               mass(layer, sample, true), mass(layer, sample, false), alpha);
        for (auto it = gone.rbegin(); it != gone.rend(); ++it) kept.erase(kept.begin() + *it);
        of_layers.push_back(static_cast<int64_t>(gone.size()));
      }
      counts.push_back(of_layers);
    }
    return counts;
  }
};

TEST(FitpruneFit, BaselinesOfV2) {
  const std::pair<double, double> expected[] = {
      {1.171226, 1.259497}, {1.161507, 1.353166}, {1.177823, 1.394885}, {1.131132, 1.299496}};
  for (int64_t layer = 0; layer < 4; ++layer) {
    EXPECT_NEAR(Maps::mass(layer, 0, true), expected[layer].first, 1e-6);
    EXPECT_NEAR(Maps::mass(layer, 0, false), expected[layer].second, 1e-6);
  }
}

TEST(FitpruneFit, RecipesOfV2) {
  const FitpruneCost cost{4, 8, 16};
  const std::tuple<double, double, Counts, double> expected[] = {{.2, .1796875, {0, 1, 1, 0}, .142578},
                                                                 {.4, .296875, {1, 2, 1, 0}, .347656},
                                                                 {.6, .5234375, {3, 2, 0, 0}, .526693},
                                                                 {.8, 1.0, {8, 0, 0, 0}, .895833}};
  for (const auto& [reduction, alpha, deleted, achieved] : expected) {
    const FittedFitprune fitted = search_fitprune(8, cost, reduction, Maps::counts_at);
    EXPECT_EQ(fitted.alpha, alpha);
    EXPECT_EQ(fitted.deleted, deleted);
    EXPECT_NEAR(fitted.achieved, achieved, 1e-6);
  }
}

// Section 4: what the published recipes of LLaVA-1.5-7B save.
TEST(FitpruneFit, CostsOfThePublishedRecipes) {
  const FitpruneCost cost{32, 4096, 11008};
  EXPECT_NEAR(cost.full(576), 3.817e12, 1e9);
  const std::pair<const char*, double> reductions[] = {{"10", 6.4},  {"20", 15.4}, {"30", 27.9}, {"40", 38.9},
                                                       {"50", 49.7}, {"55", 54.5}, {"60", 59.7}, {"70", 69.7},
                                                       {"80", 79.7}, {"90", 89.7}};
  for (const auto& [name, percent] : reductions) {
    const FitpruneRecipe recipe = published_fitprune_recipe("llava15-7b-" + std::string(name));
    EXPECT_NEAR(100 * (1 - cost.of(576, recipe.deleted) / cost.full(576)), percent, 0.06) << name;
  }
}

}  // namespace
}  // namespace espalier
