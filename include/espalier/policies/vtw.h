// SPDX-License-Identifier: Apache-2.0
// VTW, Visual Tokens Withdrawal (arXiv 2405.05803): the first `layer` decoder layers see every image token, the others
// none. Choosing the layer by calibration is not done here.
#pragma once

#include <optional>

#include "espalier/pruning.h"

namespace espalier {

struct VtwOptions {
  // The paper's K, 0 to the model's depth: layers that see the image. The depth itself withdraws nothing; by default
  // half of it.
  std::optional<int> layer = {};
  CommonOptions common = {};
};

PolicyPtr make_vtw(const VtwOptions& options);

}  // namespace espalier
