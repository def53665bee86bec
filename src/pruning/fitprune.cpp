// SPDX-License-Identifier: Apache-2.0
// FitPrune: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models" (arXiv
// 2409.10197), as docs/specs/fitprune.md reads it. Symbols: delete[l] -> recipe.deleted (l is 0-based), N_0 ->
// recipe.num_visual, N -> image tokens of the request, M -> the probe's maximum over heads, cross and self -> its means
// over the text behind the last image and over the image tokens, s -> scores, their product. A token that leaves in
// layer l took part in the layer's attention and stays in its cache. Differences from the released code: all images of
// the request are one pool (the code knows one span); ties keep the lower position; positions are kept there as here.
// Pinned tokens and floors stay, and a count that would take them is cut.
#include "espalier/policies/fitprune.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

struct Published {
  std::string_view name;
  int64_t num_visual;
  std::array<int16_t, 32> deleted;
};

// The tables of the released code.
constexpr std::array kPublished = {
    Published{"llava15-7b-10", 576, {0, 0, 1, 2, 1, 0,  1, 4, 5, 5, 11, 4, 2, 2, 0, 0,
                                     1, 1, 2, 4, 2, 10, 1, 1, 1, 2, 1,  1, 0, 1, 0, 0}},
    Published{"llava15-7b-20", 576, {0, 0, 3, 3,  1, 1,  4, 16, 14, 15, 24, 4, 2, 3, 2, 0,
                                     6, 0, 5, 13, 4, 19, 2, 1,  1,  1,  1,  1, 2, 1, 0, 0}},
    Published{"llava15-7b-30", 576, {0,  0, 7,  6,  4, 5,  16, 40, 24, 21, 24, 4, 2, 3, 4, 0,
                                     16, 0, 11, 26, 6, 32, 3,  1,  0,  1,  2,  2, 4, 0, 0, 0}},
    Published{"llava15-7b-40", 576, {0,  1, 21, 13, 14, 11, 41, 53, 29, 15, 14, 5, 1, 4, 5, 1,
                                     26, 1, 13, 28, 6,  27, 2,  1,  0,  0,  1,  1, 2, 0, 0, 0}},
    Published{"llava15-7b-50", 576, {3,  7, 49, 24, 29, 17, 59, 41, 26, 8, 10, 6, 2, 5, 7, 2,
                                     30, 3, 13, 27, 5,  23, 2,  1,  0,  0, 1,  1, 2, 0, 0, 0}},
    Published{"llava15-7b-55", 576, {6,  17, 69, 31, 34, 19, 59, 30, 23, 6, 8, 7, 2, 5, 8, 2,
                                     29, 4,  12, 25, 4,  19, 2,  1,  0,  0, 1, 0, 1, 0, 0, 0}},
    Published{"llava15-7b-60", 576, {14, 33, 89, 36, 36, 20, 55, 21, 18, 4, 7, 5, 2, 5, 7, 4,
                                     26, 5,  11, 24, 4,  18, 2,  1,  0,  0, 1, 0, 1, 0, 0, 0}},
    Published{"llava15-7b-70", 576, {48, 79, 118, 41, 33, 17, 36, 9, 9, 2, 3, 2, 1, 3, 4, 8,
                                     18, 7,  8,   20, 4,  13, 2,  1, 0, 0, 1, 0, 1, 0, 0, 0}},
    Published{"llava15-7b-80", 576, {128, 127, 118, 35, 26, 8, 13, 3, 2, 1, 0, 0, 0, 2, 1, 8,
                                     7,   8,   5,   11, 2,  6, 1,  1, 0, 0, 0, 1, 0, 0, 0, 0}},
    Published{"llava15-7b-90", 576, {262, 153, 80, 19, 13, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 1,
                                     1,   2,   1,  2,  0,  1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0}},
    Published{"llavanext-7b-40", 2880, {7,  73, 162, 124, 119, 148, 131, 151, 105, 26, 30, 17, 5, 19, 44, 10,
                                        73, 60, 67,  61,  32,  39,  0,   3,   1,   5,  0,  0,  0, 0,  0,  0}},
    Published{"llavanext-7b-60", 2880, {98, 313, 279, 218, 201, 221, 167, 132, 63, 12, 11, 5, 1, 8, 26, 13,
                                        83, 57,  56,  58,  24,  42,  0,   2,   1,  5,  0,  0, 0, 0, 0,  0}},
};

bool is_published(std::string_view name) {
  return std::ranges::any_of(kPublished, [&](const Published& recipe) { return recipe.name == name; });
}

class Fitprune final : public PlannedPolicy {
 public:
  explicit Fitprune(const FitpruneOptions& options)
      : PlannedPolicy("fitprune", options.common, options.row_breaks_compete), options_(options) {
    const FitpruneRecipe& recipe = options.recipe;
    if (recipe.deleted.empty() || recipe.num_visual < 1) throw Error("fitprune: recipe is needed");
    int64_t sum = 0;
    for (const int64_t number : recipe.deleted) {
      if (number < 0 || number > recipe.num_visual)
        throw Error("fitprune: recipe " + recipe.name + " deletes " + std::to_string(number) + " of " +
                    std::to_string(recipe.num_visual) + " tokens in a layer");
      sum += number;
    }
    if (sum > recipe.num_visual)
      throw Error("fitprune: recipe " + recipe.name + " deletes " + std::to_string(sum) + " of " +
                  std::to_string(recipe.num_visual) + " tokens");
  }

  std::string spec() const override {
    return SpecWriter("fitprune")
        .add("recipe", options_.recipe.name)
        .row_breaks(options_.row_breaks_compete, FitpruneOptions().row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    const auto layers = std::ssize(options_.recipe.deleted);
    if (layers != model.num_layers)
      throw Error("fitprune: recipe " + options_.recipe.name + " is for " + std::to_string(layers) +
                  " layers, but the model has " + std::to_string(model.num_layers));
    int64_t before = prompt.num_image_tokens(row_breaks_compete());
    std::vector<PlannedPoint> points;
    bool drops = false;
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const int64_t left = left_after(layer, prompt);
      if (left < before) points.push_back({{Site::kAfterAttention, layer}, left, {}, true});
      drops |= left < before;
      before = left;
    }
    if (drops && text_behind_last_image(prompt).empty())
      throw Error("fitprune: no text stands behind the last image to rate its tokens");
    return points;
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State*) const override {
    AttentionProbe probe{
        .layer = point.layer, .rows = AttentionProbe::Rows::kGiven, .heads = AttentionProbe::Heads::kMax};
    probe.groups.push_back({.rows = text_tokens_at(layout, text_behind_last_image(*layout.prompt))});
    probe.groups.push_back({.rows = layout.image_tokens});
    return {probe};
  }

  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const int64_t m = layout.num_image_tokens();
    const at::Tensor scores = signals[0].slice(0, 0, m) * signals[0].slice(0, m, 2 * m);
    std::vector<int64_t> stay, sizes;
    if (common().min_per_image > 0) {
      stay = protected_per_image(*layout.prompt, row_breaks_compete(), common().min_per_image);
      sizes = tokens_per_image(layout, row_breaks_compete());
    }
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    const int64_t kept = std::min(left_after(point.layer, *layout.prompt), m);
    return {.kept = keep_best(scores, pinned, {{m}, {kept}}, stay, sizes), .scores = scores};
  }

 private:
  // Image tokens of an unpruned request that the recipe leaves behind this layer.
  int64_t left_after(int layer, const PromptLayout& prompt) const {
    const FitpruneRecipe& recipe = options_.recipe;
    const int64_t pool = prompt.num_image_tokens(row_breaks_compete());
    const std::vector<int64_t> stay = protected_per_image(prompt, row_breaks_compete(), common().min_per_image);
    int64_t left = pool;
    for (int l = 0; l <= layer; ++l)
      left -= rounded_share({recipe.deleted[l], recipe.num_visual}, pool, Rounding::kFloor);
    return std::max(left, std::accumulate(stay.begin(), stay.end(), int64_t{0}));
  }

  FitpruneOptions options_;
};

}  // namespace

FitpruneRecipe published_fitprune_recipe(std::string_view name) {
  std::string known;
  for (const Published& recipe : kPublished) {
    if (recipe.name == name)
      return {std::string(name), recipe.num_visual, {recipe.deleted.begin(), recipe.deleted.end()}};
    known += (known.empty() ? "" : ", ") + std::string(recipe.name);
  }
  throw Error("fitprune: recipe=" + std::string(name) + " is not one of " + known);
}

PolicyPtr make_fitprune(const FitpruneOptions& options) {
  return std::make_shared<Fitprune>(options);
}

PlannedPolicyPtr fitprune_from(const OptionReader& reader) {
  FitpruneOptions options;
  const auto name = reader.text("recipe");
  if (!name) throw Error("fitprune: recipe is needed");
  options.recipe =
      is_published(*name) ? published_fitprune_recipe(*name) : reader.files().fitprune_recipe(std::string(*name));
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Fitprune>(options);
}

}  // namespace espalier
