// SPDX-License-Identifier: Apache-2.0
// VTW: "Boosting Multimodal LLMs with Visual Tokens Withdrawal for Rapid Inference" (arXiv 2405.05803), as
// docs/specs/vtw.md reads it. Symbols: K -> layer (0-based: layers 0 … K-1 are run in full, all image tokens leave
// before layer K), N -> the image tokens, L -> the model's depth. Differences from the released code: every image of
// the request is withdrawn, found by the layout (the code knows one span); row breaks leave with their rows; pinned
// tokens and the floor of each image, lowest ordinals first, stay. The default is half the depth, which is what others
// call VTW's default (16 of 32); K from a calibration (section 3) comes in through `layer` or a recipe.
#include "espalier/policies/vtw.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

class Vtw final : public PlannedPolicy {
 public:
  explicit Vtw(const VtwOptions& options) : PlannedPolicy("vtw", options.common, false), options_(options) {
    if (options.layer && *options.layer < 0)
      throw Error("vtw: layer=" + std::to_string(*options.layer) + " is below 0");
    if (options.layer && options.recipe) throw Error("vtw: give layer or recipe, not both");
  }

  std::string spec() const override {
    SpecWriter writer("vtw");
    if (options_.layer) writer.add("layer", std::to_string(*options_.layer));
    if (options_.recipe) writer.add("recipe", options_.recipe->file);
    return writer.common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (options_.recipe && options_.recipe->num_layers != model.num_layers)
      throw Error("vtw: recipe " + options_.recipe->file + " is for " + std::to_string(options_.recipe->num_layers) +
                  " layers, but the model has " + std::to_string(model.num_layers));
    const int layer = options_.recipe ? options_.recipe->layer : options_.layer.value_or(model.num_layers / 2);
    if (layer > model.num_layers)
      throw Error("vtw: layer=" + std::to_string(layer) + ", but the model has " + std::to_string(model.num_layers) +
                  " layers");
    const std::vector<int64_t> stay = protected_per_image(prompt, false, common().min_per_image);
    const int64_t left = std::accumulate(stay.begin(), stay.end(), int64_t{0});
    const int64_t all = prompt.num_image_tokens(false);
    if (layer == model.num_layers) return {{{Site::kBeforeLayer, layer}, all, {}, false}};
    return {{{Site::kBeforeLayer, layer}, left, stay, left < all}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    const std::vector<int64_t> stay = protected_per_image(*layout.prompt, false, common().min_per_image);
    const auto longs = layout.image_tokens.options();
    if (std::all_of(stay.begin(), stay.end(), [](int64_t number) { return number == 0; }))
      return {.kept = at::zeros({0}, longs)};
    const Blocks images = blocks_within(tokens_per_image(layout, false), stay);
    const at::Tensor alike = at::zeros({layout.num_image_tokens()}, longs.dtype(at::kFloat));
    return {.kept = keep_best(alike, layout.pinned.index_select(0, layout.image_tokens), images)};
  }

 private:
  VtwOptions options_;
};

}  // namespace

PolicyPtr make_vtw(const VtwOptions& options) {
  return std::make_shared<Vtw>(options);
}

PlannedPolicyPtr vtw_from(const OptionReader& reader) {
  VtwOptions options;
  if (const auto file = reader.text("recipe")) options.recipe = reader.files().vtw_recipe(std::string(*file));
  if (reader.text("layer")) options.layer = static_cast<int>(reader.integer("layer", 0, 0, 1 << 20));
  options.common = reader.common();
  return std::make_shared<Vtw>(options);
}

}  // namespace espalier
