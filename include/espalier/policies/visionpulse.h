// SPDX-License-Identifier: Apache-2.0
// VisionPulse (arXiv 2605.31457): with each generated token one layer decides how many image tokens the rest of the
// layers see, by how much it looks at the image, and which, by its mean logits. All stay in memory, and the next token
// may see others. Prefill and memory are not reduced; what decoding attends to is.
#pragma once

#include <optional>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct VisionPulseOptions {
  // The anchor, from 0 on: it decides, and sees what it decided. By default as far in as the authors' layer 17 of 36.
  std::optional<int> layer = {};
  double tau = 0.4;          // temperature of the attention whose mass is the budget, at least 0.001
  Fraction least = {1, 20};  // of all image tokens, rounded down, at least one token
  Fraction most = {1, 10};
  int every = 1;  // generated tokens from choice to choice, at least 1; the authors choose with each
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_visionpulse(const VisionPulseOptions& options);

}  // namespace espalier
