// SPDX-License-Identifier: Apache-2.0
// Base of the built-in policies: options that all of them take, checks that all of them make, and the plan from which a
// pipeline sees what each point leaves. A user's own policy derives from PruningPolicy and needs none of this.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/pruning.h"
#include "pruning/selection.h"

namespace espalier {

struct PlannedPoint {
  ActPoint point;
  // Image tokens of the request that the amount leaves here. Nothing: the data decide, or the amount is only reached at
  // a later point.
  std::optional<int64_t> tokens_left;
  std::vector<int64_t> tokens_left_per_image;  // where the images have budgets of their own
  bool may_drop = true;                        // false: the amount leaves nothing to do, and the point is not visited
};

class PlannedPolicy : public PruningPolicy {
 public:
  // Every point in the order of the data, with what it leaves of an unpruned request. Throws Error when the model or
  // the request cannot serve the policy.
  virtual std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const = 0;

  CommonOptions common() const final { return common_; }
  bool row_breaks_compete() const final { return row_breaks_compete_; }
  // min_tokens is the runtime's to apply; a request without image tokens has no points.
  std::vector<ActPoint> points(const ModelFacts& model, const PromptLayout& prompt) const final;

 protected:
  // Throws Error when the common options are out of range.
  PlannedPolicy(std::string_view name, const CommonOptions& common, bool row_breaks_compete);

  int64_t num_image_tokens(const PromptLayout& prompt, int image) const;  // that compete
  // What an amount means to this policy; rounding and at_least_one are for it to set.
  PoolRule pool_rule(const Amount& amount) const;

 private:
  std::string name_;
  CommonOptions common_;
  bool row_breaks_compete_;
};

using PlannedPolicyPtr = std::shared_ptr<const PlannedPolicy>;

// Policies in sequence, each seeing what the one before left. Throws Error when their common options differ.
PolicyPtr make_pipeline(std::vector<PlannedPolicyPtr> policies);

}  // namespace espalier
