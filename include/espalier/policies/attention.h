// SPDX-License-Identifier: Apache-2.0
// Ranking by attention before one decoder layer, each image by itself, with a choice of whose attention counts: the
// motivation study of CATP (arXiv 2508.07871). FastV is the published method of this kind.
#pragma once

#include <cstdint>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

struct AttentionOptions {
  // Whose attention ranks, averaged over rows: every row; the last prompt row; the text of the image itself (after it,
  // of its example; the last row where there is none); the text of the query example.
  enum class Rows : uint8_t { kAll, kLast, kOwnText, kQueryText };

  Amount amount = {};  // of each image
  int layer = 0;       // 1 to the model's depth, needed; reads the attention of the layer before
  Rows rows = Rows::kLast;
  bool row_breaks_compete = true;
  CommonOptions common = {};
};

PolicyPtr make_attention(const AttentionOptions& options);

}  // namespace espalier
