// SPDX-License-Identifier: Apache-2.0
// What a request will compute and cache, known before anything runs: from its prompt and the budgets of its policy's
// steps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "layout/plan.h"

namespace espalier {

// A step and the tokens that it judges.
struct PlannedSelection {
  std::string policy;      // its spec
  double candidates = 0;   // all of them
  double comparisons = 0;  // of each with all of its pool
  double picks = 0;        // of each with all of its pool that stay
  double rows = 0;         // of the whole sequence
};

struct PlannedRows {
  std::vector<int64_t> of_layer;  // that enter each decoder layer and are cached there
  int64_t projected = 0;          // image tokens that enter the projector
  std::vector<PlannedSelection> selections;

  int64_t total() const;
};

// Tokens that steps add beside their budget: how many is not known before.
enum class Additions : uint8_t {
  kBounded,  // such a step counts as if it dropped nothing: no layer gets more rows than it says here
  kLeftOut,
};

// Steps whose budget the data decide count as if they dropped nothing.
PlannedRows planned_rows(const std::vector<PlannedStep>& steps, bool row_breaks_compete, const PromptLayout& prompt,
                         int num_layers, Additions additions = Additions::kBounded);

}  // namespace espalier
