// SPDX-License-Identifier: Apache-2.0
// HiPrune (arXiv 2508.00553): before the projector each crop keeps what a middle layer of the tower looks at (anchors),
// their neighbours on the grid (buffers), and what a deep layer looks at (registers).
#pragma once

#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct HipruneOptions {
  Amount amount = {};                    // of each crop
  Fraction alpha = {1, 10};              // part of it for anchors with their buffers
  std::optional<int> layer_object = {};  // vision layer that picks anchors; by default the last of the first 3/8
  std::optional<int> layer_deep = {};    // vision layer that picks registers; by default the one the projector reads
  CommonOptions common = {};
};

PolicyPtr make_hiprune(const HipruneOptions& options);

}  // namespace espalier
