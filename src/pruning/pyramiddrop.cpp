// SPDX-License-Identifier: Apache-2.0
// PyramidDrop (arXiv 2410.17247), as docs/specs/pyramiddrop.md reads it.
//   L    layers, 0-based: "8" runs layers 0 … 7, then drops, before layer 8
//   rho  keep_ratio
//   n0   tokens of the image before any pruning
//   a_j  the probe's mean over heads of the last prompt row, on queries and keys of the layer that runs next
// Differences from the released code:
//   - positions are kept unless positions=compact (the code renumbers);
//   - each image has a quota of its own, ranked by the same row (the code takes one image);
//   - the row is the last of the prompt, also in training.
#include "espalier/policies/pyramiddrop.h"

#include <array>

#include "pruning/built_in.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

using O = PyramiddropOptions;

constexpr std::array kLayersOf32 = {8, 16, 24};

std::vector<Amount> amounts_of(const O& o) {
  return amounts_of_stages("pyramiddrop", o.amounts, o.layers.empty() ? kLayersOf32.size() : o.layers.size());
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  const std::vector<int> layers = o.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : o.layers;
  check_stage_layers("pyramiddrop", layers, o.rank == O::Rank::kNext ? 0 : 1, model.num_layers);
  const std::vector<Amount> amounts = amounts_of(o);
  std::vector<Step> steps;
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    if (layers[stage] == model.num_layers) continue;
    const int read = o.rank == O::Rank::kNext ? layers[stage] : layers[stage] - 1;
    steps.push_back(
        {.at = {Site::kBeforeLayer, layers[stage]},
         .budget = {.pool = Budget::Pool::kImage,
                    .amount = amounts[stage],
                    .rounding = Rounding::kFloor,
                    .at_least_one = true},
         .needs = [read](const TokenLayout&) -> std::vector<Signal> { return {AttentionProbe{.layer = read}}; },
         .decide = by_first_signal});
  }
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "pyramiddrop",
      .options = {stage_ratios(&O::amounts, "part that stays of each image, one for each layer; r: r, r/2, r/4, …"),
                  stage_numbers(&O::amounts),
                  {"layers", &O::layers, "acts before these layers; 8:16:24 of 32, in proportion to the depth"},
                  {"rank",
                   &O::rank,
                   {{"next", O::Rank::kNext}, {"previous", O::Rank::kPrevious}},
                   "whose attention of the last row: next, the layer itself; previous, the one before"},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = [](const O& o) { amounts_of(o); }};
  return method;
}

}  // namespace

PolicyPtr make_pyramiddrop(const PyramiddropOptions& options) {
  return make(method(), options);
}

PolicyRow pyramiddrop_row() {
  return row(method(), {.paper = "arXiv 2410.17247",
                        .summary = "images are cut in stages by the attention of the layer that follows",
                        .sites = {Site::kBeforeLayer},
                        .needs = "attention of the last row in a few layers",
                        .refusal = needs_layers<4>,
                        .examples = {{"pyramiddrop"}, {"pyramiddrop:num_kept=20:3,layers=2:6,rank=previous"}}});
}

}  // namespace espalier
