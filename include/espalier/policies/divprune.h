// SPDX-License-Identifier: Apache-2.0
// DivPrune (arXiv 2503.02175): before the decoder each image keeps the tokens that lie farthest apart, so that no two
// of them are near duplicates. Looks at no attention and no text.
#pragma once

#include "espalier/ops.h"
#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct DivpruneOptions {
  Amount amount = {};  // of each image; the paper's ratio is the part that stays
  ops::Distance distance = ops::Distance::kCosine;
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_divprune(const DivpruneOptions& options);

}  // namespace espalier
