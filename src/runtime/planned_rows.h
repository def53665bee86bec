// SPDX-License-Identifier: Apache-2.0
// What a request will compute and cache, known before anything runs: from its prompt and the budgets of its policy's
// steps.
#pragma once

#include <cstdint>
#include <optional>
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
  // What a layer's cache comes to.
  struct Cached {
    int64_t behind_prefill = 0;
    // Behind an answer; less than both together where a step makes room (Step::makes_room).
    int64_t with_answer(int64_t new_tokens) const;
    std::optional<int64_t> least = {};  // then what stays of the prompt in any case
  };

  std::vector<int64_t> of_layer;  // that enter each decoder layer
  std::vector<Cached> cached;     // [layer], at most
  int64_t projected = 0;          // image tokens that enter the projector
  std::vector<PlannedSelection> selections;

  // At any time, of all layers: in prefill a layer has all rows that entered it until its cache is cut.
  int64_t most_cached(int64_t new_tokens) const;
};

// Tokens that steps add beside their budget: how many is not known before.
enum class Additions : uint8_t {
  kBounded,  // such a step counts as if it dropped nothing: no layer gets more rows than it says here
  kLeftOut,
};

// Steps whose budget the data decide count as if they dropped nothing, and at a cache those that hold what leaves.
PlannedRows planned_rows(const std::vector<PlannedStep>& steps, bool row_breaks_compete, const PromptLayout& prompt,
                         int num_layers, Additions additions = Additions::kBounded);

}  // namespace espalier
