// SPDX-License-Identifier: Apache-2.0
// VisionZip (arXiv 2412.04467): before the projector each crop becomes its class row, the patches that the class row
// looks at most, and a few contextual tokens that summarise the rest.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct VisionzipOptions {
  Amount amount = {};                      // of each crop; counts the class row and the contextual tokens
  std::optional<int64_t> contextual = {};  // of the amount; by default 10/64 of it
  std::optional<int> layer_attention =
      {};  // vision layer of attention and keys; by default the one the projector reads
  CommonOptions common = {};
};

PolicyPtr make_visionzip(const VisionzipOptions& options);

}  // namespace espalier
