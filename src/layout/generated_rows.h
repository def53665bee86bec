// SPDX-License-Identifier: Apache-2.0
// What probes of steps that are asked while decoding (Step::every) make of attention: one code for a live run and for a
// replay.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <vector>

#include "espalier/pruning.h"
#include "layout/policy_walk.h"

namespace espalier {

// Whether it reads the last row of what there is rather than given rows.
bool reads_newest(const AttentionProbe& probe);

// The columns of such a probe in prefill, int64: of image tokens and, where it wants them, of all others.
at::Tensor newest_columns(const AttentionProbe& probe, const TokenLayout& layout);

// Attention of generated tokens as steps that are asked again wait for it.
class GeneratedRows {
 public:
  // Whether the step's signal j wants the row of generated token number `generated`.
  static bool is_wanted(const StepAgain& again, size_t j, int64_t generated);

  // `row`: float32 [h, n + generated] of that token, which is the last: over the prompt's tokens as the step's layout
  // has them, and the generated ones.
  void add(size_t i, size_t j, at::Tensor row);
  // The signals of again()[i], whose rows are then gone.
  std::vector<at::Tensor> take(size_t i, const StepAgain& again);

 private:
  std::vector<std::vector<std::vector<at::Tensor>>> rows_;  // [step][signal][token]
};

}  // namespace espalier
