// SPDX-License-Identifier: Apache-2.0
// Evenly spaced tokens of each image at the projector's output: the baseline that knows nothing but the order.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct UniformOptions {
  Amount amount = {};  // of each image
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_uniform(const UniformOptions& options);

}  // namespace espalier
