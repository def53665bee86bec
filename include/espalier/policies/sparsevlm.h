// SPDX-License-Identifier: Apache-2.0
// SparseVLM (arXiv 2410.04417): at a few decoder layers the image tokens that the question's telling words look at
// least leave; some of them come back as averages of clusters.
#pragma once

#include <cstdint>
#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct SparsevlmOptions {
  enum class Rule : uint8_t {
    kFixed,       // `amounts`
    kRankLambda,  // lambda of what the rank of the raters' attention does not need leaves: the paper's words
    kRankScale,   // scale · rank + bias stay: the first release
  };

  // Before these layers, each ranking by the layer before it; none: 3, 7 and 16 of 32, in proportion to the depth.
  std::vector<int> layers = {};
  Rule rule = Rule::kFixed;
  StageAmounts amounts = {};  // of all image tokens, unpruned; clusters come on top. With kFixed only
  Fraction lambda = {1, 2};   // with kRankLambda
  double scale = 13.5;        // with kRankScale
  double bias = 0.0;          // the same
  bool recycle = true;
  Fraction tau = {3, 10};    // part of what leaves that is clustered, the best of it; and one more
  Fraction theta = {1, 10};  // clusters for each of these, image by image; and one more
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_sparsevlm(const SparsevlmOptions& options);

}  // namespace espalier
