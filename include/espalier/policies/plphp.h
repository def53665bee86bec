// SPDX-License-Identifier: Apache-2.0
// PLPHP, per-layer per-head vision token pruning (arXiv 2502.14504): the cache of each decoder layer keeps image tokens
// at a rate that follows how much the layer looks at the images, and each KV head keeps its own. Prefill is not
// shortened; decoding and memory are.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct PlphpOptions {
  Fraction keep_ratio = {2, 5};  // r, of all image tokens, in layers between the thresholds; rounded down, at least 1
  Fraction delta = {3, 10};      // added where the attention mass on images is above alpha, taken off where below beta
  double alpha = 0.25;
  double beta = 0.1;
  int every = 0;        // generated tokens from choice to choice, the newest one's row deciding; 0: once, after prefill
  bool revives = true;  // with `every`: what leaves stays in memory and may return; false: it is freed
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_plphp(const PlphpOptions& options);

}  // namespace espalier
