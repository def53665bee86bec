// SPDX-License-Identifier: Apache-2.0
// M3, Matryoshka multimodal models (arXiv 2405.17430): before the decoder each k x k cell of a crop becomes the mean of
// its tokens. For models trained with it; others lose much.
#pragma once

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct M3Options {
  Amount amount = {};  // of each whole crop: its tokens divided by the square of a number that divides the grid
  CommonOptions common = {};
};

PolicyPtr make_m3(const M3Options& options);

}  // namespace espalier
