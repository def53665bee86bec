// SPDX-License-Identifier: Apache-2.0
// DART, Duplication-Aware Reduction of Tokens (arXiv 2502.11494): a few pivots stay, and beside them the tokens least
// like each pivot. Reads states and keys, no attention.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct DartOptions {
  Amount amount = {};  // of each image, met exactly; a ratio leaves at least one token
  int layer = 2;  // the paper's K, 1 to the model's depth; reads the state before it and the keys of the layer before
  int image_pivots = 4;  // of each image: its tokens with the largest keys
  int text_pivots = 4;   // of the text after the last image, shared; they vote and are not counted
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_dart(const DartOptions& options);

}  // namespace espalier
