// SPDX-License-Identifier: Apache-2.0
// What a request may cost, stated in place of how much of its pictures stays: `ttft=250ms` and `kv=64MB` of a spec
// where keep_ratio or num_kept would stand. An engine solves the amount for each request: the most that fits. Nothing
// is dropped where the whole prompt fits, or where dropping would take longer than it saves.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "espalier/policies/amount.h"
#include "espalier/pruning.h"

namespace espalier {

// One of the two or both. A policy has one amount, so a single ratio is solved: part of each pool, and of a policy in
// stages the first of its halves.
struct Target {
  // Milliseconds from submission to the first token, above 0; solved with a model of the machine's costs, which
  // `espalier calibrate` measures. Where not even the least amount is expected to be in time, the quickest runs.
  std::optional<double> ttft_ms = {};
  // Keys and values of the prompt and of the longest answer that was asked for, at least 1; known exactly. Where not
  // even the least amount fits, the request is refused.
  std::optional<int64_t> kv_bytes = {};
  bool operator==(const Target&) const = default;
};

// "ttft=250ms,kv=64MB", as a spec has it: in the largest unit that shows the value exactly.
std::string to_string(const Target& target);

// What a policy with a target is made of.
struct OpenAmount {
  Target target;
  // The policy that keeps so much of each pool. Throws Error for an amount that it cannot keep.
  std::function<PolicyPtr(Fraction keep_ratio)> at;
};

// A policy with a target, for a request of an engine; its own steps() throws Error. `spec`: what it calls itself;
// `make`: the policy that keeps so much of each pool, asked for many amounts, which throws Error for one that it cannot
// keep. Throws what `make` throws for all of it.
PolicyPtr with_target(std::string spec, const Target& target, std::function<PolicyPtr(Fraction keep_ratio)> make);

// Of such a policy; nothing of any other.
std::optional<Target> target_of(const PruningPolicy& policy);
// Throws Error for an amount that it cannot keep, and for a policy without a target.
PolicyPtr at_ratio(const PruningPolicy& policy, Fraction keep_ratio);

}  // namespace espalier
