// SPDX-License-Identifier: Apache-2.0
// Accuracy of policies on the drawn in-context questions, on the same items: what `espalier eval` does. Not in a build
// with ESPALIER_EVALUATION=OFF, which does not install this header. No libtorch type appears here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "espalier/engine.h"

namespace espalier {

struct EvaluatedPolicy {
  std::string
      spec;  // as rows call it: a spec string, also `oracle:…` and `random:…` without a seed (five draws an item)
  std::shared_ptr<const PruningPolicy> custom = {};  // a policy of the caller's own, which then wins
};

struct EvaluationOptions {
  std::vector<EvaluatedPolicy> policies = {};  // beside the unpruned model, which is always asked
  std::vector<std::string> suites = {};        // "bind", or a cell such as "bind/shape-2x1"; empty: single, detail,
                                               // bind and define
  uint64_t seed = 0;                           // which list of test items; published numbers use 0
  int64_t items = 200;                         // of each cell, 1 or more
  std::string difficulty = "hard";             // plain, clutter, distractor or hard
  std::optional<int> side = {};  // pixels along a side of the pictures, 28 to 1344; unset: what the model takes
  bool with_controls = true;     // the unpruned model without images, with shuffled words, without examples
};

struct EvaluationCallbacks {
  std::function<void(int64_t done, int64_t total)> on_progress = {};
  std::function<bool()> should_cancel = {};
};

// JSON, as `espalier eval --json` prints it. Nothing when cancelled. Throws Error for a policy, suite or difficulty
// that does not exist, and for what a policy or the model cannot do, before the work.
std::optional<std::string> evaluate(const Engine& engine, const EvaluationOptions& options,
                                    const EvaluationCallbacks& callbacks = {});

}  // namespace espalier
