// SPDX-License-Identifier: Apache-2.0
// Random pruning of each image at the projector's output: the baseline that every method has to beat.
#pragma once

#include <cstdint>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct RandomOptions {
  Amount amount = {};  // of each image
  uint64_t seed = 0;   // of the request; the kept set does not depend on batching
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_random(const RandomOptions& options);

}  // namespace espalier
