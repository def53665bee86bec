// SPDX-License-Identifier: Apache-2.0
// SparseVLM (arXiv 2410.04417): at a few decoder layers the image tokens that the question's telling words look at
// least leave; some of them come back as averages of clusters.
#pragma once

#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct SparsevlmOptions {
  // Before these layers, each ranking by the layer before it; none: 3, 7 and 16 of 32, in proportion to the depth.
  std::vector<int> layers = {};
  StageAmounts amounts = {};  // of all image tokens, unpruned; clusters come on top
  bool recycle = true;
  Fraction tau = {3, 10};    // part of what leaves that is clustered, the best of it; and one more
  Fraction theta = {1, 10};  // clusters for each of these, image by image; and one more
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_sparsevlm(const SparsevlmOptions& options);

}  // namespace espalier
