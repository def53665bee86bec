// SPDX-License-Identifier: Apache-2.0
// VTW, Visual Tokens Withdrawal (arXiv 2405.05803): the first `layer` decoder layers see every image token, the others
// none. `espalier fit` chooses the layer by calibration and writes a recipe.
#pragma once

#include <optional>
#include <string>

#include "espalier/pruning.h"

namespace espalier {

struct VtwRecipe {
  std::string file;    // as option `recipe` names it
  int num_layers = 0;  // of the model that it was fitted on
  int layer = 0;       // the chosen K
};

struct VtwOptions {
  // The paper's K, 0 to the model's depth: layers that see the image. The depth itself withdraws nothing; by default
  // half of it.
  std::optional<int> layer = {};
  std::optional<VtwRecipe> recipe = {};  // in place of `layer`
  CommonOptions common = {};
};

PolicyPtr make_vtw(const VtwOptions& options);

}  // namespace espalier
