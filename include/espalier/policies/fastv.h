// SPDX-License-Identifier: Apache-2.0
// FastV ("An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764): before decoder layer `layer`, the image
// tokens that receive the least attention in the layer before it leave. With `every` the ranking is made again while
// decoding, as the authors' variants without a cache do: prefill sees all tokens, and the caches of this layer and the
// later ones are cut.
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
  int every = 0;  // generated tokens from choice to choice, all rows staying in memory; 0: chosen once, in prefill
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_fastv(const FastvOptions& options);

}  // namespace espalier
