// SPDX-License-Identifier: Apache-2.0
// One sequence's live rows at one depth of the decoder. What belongs to a token and is not its hidden state rides
// along, and take() is the only place where rows are gathered.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "layout/cut.h"

namespace espalier {

struct Stream {
  at::Tensor hidden;               // [n, d]
  std::vector<at::Tensor> riders;  // each [n, …]

  int64_t size() const { return hidden.defined() ? hidden.size(0) : 0; }
  // Rows as a cut leaves them: those that stay and, in the places of `cut.index` from n on, its new vectors. A rider
  // has no new vectors: there it takes the row of the token whose facts the new one has.
  void take(const Applied& cut);
  // The rows of `behind` follow.
  void append(const Stream& behind);
};

}  // namespace espalier
