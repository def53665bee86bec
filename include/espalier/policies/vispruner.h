// SPDX-License-Identifier: Apache-2.0
// VisPruner (arXiv 2412.01818): before the projector each crop keeps the patches that the class token looks at most
// and, of the others, those that differ from each other.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct VisprunerOptions {
  Amount amount = {};                       // of each crop
  Fraction important_ratio = {1, 2};        // r: part of what stays that class attention chooses
  int64_t per_round = 8;                    // patches that leave at most in each round against duplicates; above 0
  std::optional<int> layer_attention = {};  // vision layer of class attention; by default the one the projector reads
  CommonOptions common = {};
};

PolicyPtr make_vispruner(const VisprunerOptions& options);

}  // namespace espalier
