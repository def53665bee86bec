// SPDX-License-Identifier: Apache-2.0
// From what a request may cost (espalier/target.h) to how much of it stays.
#pragma once

#include <cstdint>
#include <optional>

#include "espalier/generation.h"
#include "espalier/pruning.h"
#include "runtime/loaded_model.h"
#include "runtime/prompt_packer.h"

namespace espalier {

struct SolvedPolicy {
  PolicyPtr policy;     // with its amount; "none" where all stays
  SolvedAmount amount;  // but for waited_ms
  // With a target of time, by the costs alone: what this amount and the quickest take.
  double by_costs_ms = 0, least_by_costs_ms = 0;
  bool reshapes = false;  // some amounts are for pictures of another shape, for which the prompt is packed anew
};

struct UnsolvedRequest {
  const LoadedModel& model;
  const Request& request;
  const PackedPrompt& packed;   // with pictures as the model shows them
  const PruningPolicy& policy;  // with a target
  double pace = 1;              // what times by the costs are multiplied by (pace.h)
};

// allowed_ms: for encode, select and prefill; with a target of time. Throws Error where `kv` is less than the least
// amount takes, and where costs are needed that were not measured.
SolvedPolicy solve_amount(const UnsolvedRequest& unsolved, std::optional<double> allowed_ms);

}  // namespace espalier
