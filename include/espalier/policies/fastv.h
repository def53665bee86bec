// SPDX-License-Identifier: Apache-2.0
// FastV ("An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764): before decoder layer `layer`, the image
// tokens that receive the least attention in the layer before it leave.
#pragma once

#include <cstdint>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct FastvOptions {
  enum class Rows : uint8_t { kLast, kAll };

  Amount amount = {};       // of the pool; the paper's R is 1 - keep_ratio
  int layer = 2;            // the paper's K, 1 to the model's depth; the depth itself drops nothing
  Rows rows = Rows::kLast;  // whose attention ranks: the last prompt row (all released code), or all rows averaged (the
                            // paper's words)
  Budget::Pool pool = Budget::Pool::kRequest;  // or kImage
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_fastv(const FastvOptions& options);

}  // namespace espalier
