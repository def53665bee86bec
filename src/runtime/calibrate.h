// SPDX-License-Identifier: Apache-2.0
// Measures what passes over prompts take on this machine: made-up chats of all sizes, run under policies.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/generation.h"
#include "runtime/costs_file.h"

namespace espalier {

struct CalibrateOptions {
  std::vector<std::string> policies;  // specs without an amount; empty: all of the table that take a ratio
  int64_t passes = 10;                // of each policy, and four times as many without one
  uint64_t seed = 0;
  CancelCheck should_cancel = {};  // true: throws Cancelled (encode.h)
  Progress on_progress = {};
};

// With as many threads as the caller's.
MeasuredCosts measure_costs(const Engine& engine, const CalibrateOptions& options);

struct CheckedPass {
  std::string policy;  // with its amount
  int64_t pictures = 0;
  int64_t prompt_tokens = 0;
  double predicted_ms = 0, measured_ms = 0;  // to the first token
};

// What is predicted of other prompts, each under one of the policies with an amount of its own, against what they take:
// by `costs`, at the pace of those before it (pace.h).
std::vector<CheckedPass> check_costs(const Engine& engine, const CostModel& costs, int64_t passes,
                                     const CalibrateOptions& options);

}  // namespace espalier
