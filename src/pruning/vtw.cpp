// SPDX-License-Identifier: Apache-2.0
// VTW: "Boosting Multimodal LLMs with Visual Tokens Withdrawal for Rapid Inference" (arXiv 2405.05803), as
// docs/specs/vtw.md reads it.
//   K  layer, 0-based: layers 0 … K-1 are run in full, all image tokens leave before layer K
//   N  the image tokens
//   L  the model's depth
// Differences from the released code:
//   - every image of the request is withdrawn, found by the layout (the code knows one span); row breaks leave with
//     their rows;
//   - pinned tokens and the floor of each image, lowest ordinals first, stay;
//   - the default is half the depth, what others call VTW's default (16 of 32); K from a calibration (section 3) comes
//     in through `layer` or a recipe.
#include "espalier/policies/vtw.h"

#include <ATen/ops/zeros.h>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = VtwOptions;

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  if (o.recipe && o.recipe->num_layers != model.num_layers)
    throw Error("vtw: recipe " + o.recipe->file + " is for " + std::to_string(o.recipe->num_layers) +
                " layers, but the model has " + std::to_string(model.num_layers));
  const int layer = o.recipe ? o.recipe->layer : o.layer.value_or(model.num_layers / 2);
  if (!acts_before("vtw", layer, model)) return {};
  return {{.at = {Site::kBeforeLayer, layer},
           .scope = Scope::kImage,
           .budget = {.pool = Budget::Pool::kImage, .counts = std::vector<int64_t>(prompt.images.size(), 0)},
           .decide = [](const TokenLayout& layout, std::span<const at::Tensor>) {
             const auto floats = layout.image_tokens.options().dtype(at::kFloat);
             const at::Tensor alike = at::zeros({layout.num_image_tokens()}, floats);
             return Verdict{.choose = [alike](const Pools& images) { return Choice{best_of(images, alike)}; }};
           }}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "vtw",
      .options = {{"layer", &O::layer,
                   "the paper's K: all image tokens leave before this layer; half the model's depth", at_least(0)},
                  {"recipe", "in place of layer: a file that espalier fit wrote",
                   [](O& o, std::string_view file, const ReadContext& context) {
                     o.recipe = context.get_files().vtw_recipe(std::string(file));
                     return std::string();
                   },
                   [](const O& o) { return o.recipe ? o.recipe->file : std::string(); }}},
      .steps = steps,
      .check = [](const O& o) {
        if (o.layer && o.recipe) throw Error("vtw: give layer or recipe, not both");
      }};
  return method;
}

}  // namespace

PolicyPtr make_vtw(const VtwOptions& options) {
  return make(method(), options);
}

PolicyRow vtw_row() {
  return row(method(), {.paper = "arXiv 2405.05803",
                        .summary = "all image tokens leave in the middle of the decoder",
                        .sites = {Site::kBeforeLayer},
                        .needs = "nothing",
                        .refusal = any_model,
                        .examples = {{"vtw:layer=5"}, {"vtw:min_per_image=2"}}});
}

}  // namespace espalier
