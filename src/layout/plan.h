// SPDX-License-Identifier: Apache-2.0
// Which steps of a policy a request visits, and how many tokens each leaves: amounts become counts, pins and floors
// raise them, steps that can drop nothing are left out, pipelines are checked. Integers of the host alone.
#pragma once

#include <vector>

#include "espalier/pruning.h"

namespace espalier {

struct PlannedStep {
  Step step;
  // What stays of each pool of the unpruned request, pins and floors included; empty: the data decide.
  std::vector<int64_t> counts;
  int64_t least = 0;  // where it makes room: what stays in any case
};

// Throws Error, naming the policy, for steps that are out of the data's order, at a point that the model lacks or with
// a pool wider than their scope, for amounts too small for what is pinned, and for what PruningPolicy::steps refuses.
std::vector<PlannedStep> plan_steps(const PruningPolicy& policy, const ModelFacts& model, const PromptLayout& prompt);

// The same step as it is asked with a generated token, or with `generated` 0 behind prefill: where it makes room for
// the answer, so many fewer stay that there is room for the answer until the step is asked again.
PlannedStep with_room(const PlannedStep& planned, int64_t generated);

// Raises counts of pools to what is pinned and to the floors of images. `images` as in Budget.
void raise_to_floors(std::vector<int64_t>& counts, const Budget& budget, const PromptLayout& prompt,
                     bool row_breaks_compete, int64_t min_per_image);

// What policies of one request call themselves in messages: the name of a spec.
std::string_view name_of_spec(std::string_view spec);

}  // namespace espalier
