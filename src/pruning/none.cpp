// SPDX-License-Identifier: Apache-2.0
#include "espalier/policies/none.h"

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/planned_policy.h"

namespace espalier {

namespace {

class None final : public PlannedPolicy {
 public:
  explicit None(const CommonOptions& options) : PlannedPolicy("none", options, false) {}

  std::string spec() const override { return SpecWriter("none").common(common()).text(); }
  std::vector<PlannedPoint> plan(const ModelFacts&, const PromptLayout&) const override { return {}; }
  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }
  Verdict decide(const ActPoint&, const TokenLayout&, std::span<const at::Tensor>, State*) const override {
    throw Error("none: was asked for a verdict, but acts nowhere");
  }
};

}  // namespace

PolicyPtr make_none(const CommonOptions& common) {
  return std::make_shared<None>(common);
}

PlannedPolicyPtr none_from(const OptionReader& reader) {
  return std::make_shared<None>(reader.common());
}

}  // namespace espalier
