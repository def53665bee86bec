// SPDX-License-Identifier: Apache-2.0
// SCOPE (arXiv 2510.24214): before the projector each crop keeps patches that the class token looks at and that,
// together, resemble all of the crop: a greedy choice by saliency times gain of coverage.
#pragma once

#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct ScopeOptions {
  Amount amount = {};                       // of each crop
  double alpha = 1;                         // exponent of the saliency; 0: coverage alone
  std::optional<int> layer_attention = {};  // vision layer of class attention; by default the one the projector reads
  CommonOptions common = {};
};

PolicyPtr make_scope(const ScopeOptions& options);

}  // namespace espalier
