// SPDX-License-Identifier: Apache-2.0
// PyramidDrop (arXiv 2410.17247): at a few decoder layers, each image keeps the part of its tokens that the last prompt
// row looks at most, less at every stage.
#pragma once

#include <cstdint>
#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct PyramiddropOptions {
  // Whose query and keys rank: the layer that will run first on the shorter sequence, looked at ahead (all released
  // code), or the one before, whose attention is there.
  enum class Rank : uint8_t { kNext, kPrevious };

  // Before these layers; none: 8, 16 and 24 of 32, in proportion to the model's depth.
  std::vector<int> layers = {};
  // Of each image, unpruned; ratios are rounded down and leave at least one token. By default 1/2, 1/4, 1/8.
  StageAmounts amounts = {.keep_ratio = {{1, 2}}};
  Rank rank = Rank::kNext;
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_pyramiddrop(const PyramiddropOptions& options);

}  // namespace espalier
