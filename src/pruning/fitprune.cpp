// SPDX-License-Identifier: Apache-2.0
// FitPrune: "Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models" (arXiv
// 2409.10197), as docs/specs/fitprune.md reads it.
//   delete[l]    recipe.deleted, l is 0-based
//   N_0          recipe.num_visual
//   N            image tokens of the request
//   M            the probe's maximum over heads
//   cross, self  its means over the text behind the last image and over the image tokens
//   s            scores, their product
// A token that leaves in layer l took part in the layer's attention and stays in its cache. Differences from the
// released code:
//   - all images of the request are one pool (the code knows one span);
//   - ties keep the lower position; positions are kept there as here;
//   - pinned tokens and floors stay, and a count that would take them is cut.
#include "espalier/policies/fitprune.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = FitpruneOptions;

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

void check_recipe(const O& o) {
  const FitpruneRecipe& recipe = o.recipe;
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

std::vector<Signal> needs(int layer, const TokenLayout& layout) {
  AttentionProbe probe{.layer = layer, .rows = AttentionProbe::Rows::kGiven, .heads = AttentionProbe::Heads::kMax};
  probe.groups.push_back({.rows = text_tokens_at(layout, text_behind_last_image(*layout.prompt))});
  probe.groups.push_back({.rows = layout.image_tokens});
  return {probe};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const FitpruneRecipe& recipe = o.recipe;
  if (std::ssize(recipe.deleted) != model.num_layers)
    throw Error("fitprune: recipe " + recipe.name + " is for " + std::to_string(recipe.deleted.size()) +
                " layers, but the model has " + std::to_string(model.num_layers));
  const bool drops = std::ranges::any_of(recipe.deleted, [](int64_t number) { return number > 0; });
  if (drops && text_behind_last_image(prompt).empty())
    throw Error("fitprune: no text stands after the last image to rate its tokens");
  const int64_t pool = prompt.num_image_tokens(o.row_breaks_compete);
  int64_t left = pool;
  std::vector<Step> steps;
  for (int layer = 0; layer < model.num_layers; ++layer) {
    left -= rounded_share({recipe.deleted[static_cast<size_t>(layer)], recipe.num_visual}, pool, Rounding::kFloor);
    steps.push_back({.at = {Site::kAfterAttention, layer},
                     .budget = {.counts = {left}},
                     .needs = [layer](const TokenLayout& layout) { return needs(layer, layout); },
                     .decide =
                         [](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                           const int64_t m = layout.num_image_tokens();
                           return Verdict{.scores = signals[0].slice(0, 0, m) * signals[0].slice(0, m, 2 * m)};
                         }});
  }
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "fitprune",
      .options = {{"recipe",
                   "how many tokens leave in each layer: llava15-7b-10, -20, -30, -40, -50, -55, -60, -70, -80, -90, "
                   "llavanext-7b-40, -60, or a file that espalier fit wrote; needed",
                   [](O& o, std::string_view name, const ReadContext& context) {
                     o.recipe = is_published(name) ? published_fitprune_recipe(name)
                                                   : context.get_files().fitprune_recipe(std::string(name));
                     return std::string();
                   },
                   [](const O& o) { return o.recipe.name; }},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = check_recipe};
  return method;
}

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
  return make(method(), options);
}

PolicyRow fitprune_row() {
  return row(method(), {.paper = "arXiv 2409.10197",
                        .summary = "a fitted number of tokens leaves inside each layer",
                        .sites = {Site::kAfterAttention},
                        .needs = "attention of all rows after the first image in most layers; a recipe for the depth",
                        .refusal =
                            [](const ModelFacts& model) {
                              return model.num_layers == 32
                                         ? std::string()
                                         : "the published recipes are for 32 layers, the model has " +
                                               std::to_string(model.num_layers) + "; espalier fit makes others";
                            },
                        .examples = {{"fitprune:recipe=recipe.json"}}});
}

}  // namespace espalier
