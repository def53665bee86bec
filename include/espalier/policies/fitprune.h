// SPDX-License-Identifier: Apache-2.0
// FitPrune (arXiv 2409.10197): a recipe says how many image tokens leave inside each decoder layer; those that text and
// other image tokens look at least go. Applies recipes; `espalier fit` makes them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/pruning.h"

namespace espalier {

struct FitpruneRecipe {
  std::string name;        // as option `recipe` names it: a published one, or a file
  int64_t num_visual = 0;  // image tokens that it was fitted for; counts are scaled to the request's, rounded down
  std::vector<int64_t> deleted;  // by layer, one entry for each of the model's
};

// The published ones: llava15-7b-10 … -90 and llavanext-7b-40, -60. Throws Error for another name.
FitpruneRecipe published_fitprune_recipe(std::string_view name);

struct FitpruneOptions {
  FitpruneRecipe recipe = {};  // needed
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_fitprune(const FitpruneOptions& options);

}  // namespace espalier
