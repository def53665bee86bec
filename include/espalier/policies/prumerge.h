// SPDX-License-Identifier: Apache-2.0
// LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388): before the projector each crop keeps the patches that the class row
// singles out (and, with plus, a regular grid of others); each takes up the patches most like it, and one token carries
// the rest.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct PrumergeOptions {
  bool plus = false;
  Amount amount = {};                       // of each crop, the extra token counted; neither: as many as stand out
  int64_t neighbours = 32;                  // folded into each survivor
  bool extra_token = true;                  // the weighted rest, as the crop's last token
  std::optional<int> layer_attention = {};  // vision layer of attention and keys; by default the last
  CommonOptions common = {};
};

PolicyPtr make_prumerge(const PrumergeOptions& options);

}  // namespace espalier
