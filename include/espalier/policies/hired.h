// SPDX-License-Identifier: Apache-2.0
// HiRED (arXiv 2408.10945): an image's budget is divided between its full view and its tiles by early class attention,
// and each crop keeps the patches that late class attention looks at most.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct HiredOptions {
  enum class Allocation : uint8_t { kMass, kCountStrips };

  Amount amount = {};       // of an image, all crops together; a ratio counts whole crops
  Fraction alpha = {1, 2};  // the full view's part, of an image with tiles
  Allocation allocation = Allocation::kMass;
  int layer_init = 0;                   // vision layer that divides the budget between tiles
  std::optional<int> layer_final = {};  // vision layer that ranks; by default the one the projector reads
  CommonOptions common = {};
};

PolicyPtr make_hired(const HiredOptions& options);

}  // namespace espalier
