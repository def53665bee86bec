// SPDX-License-Identifier: Apache-2.0
// The baseline that prunes pixels: pictures are scaled down before the vision tower until about the wanted share of
// tokens arises. Nothing acts after that.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct ResizeOptions {
  Amount amount = {};              // of each image, all crops together
  bool row_breaks_compete = true;  // for a pipeline whose other policies have it so
  CommonOptions common = {};
};

PolicyPtr make_resize(const ResizeOptions& options);

}  // namespace espalier
