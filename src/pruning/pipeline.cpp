// SPDX-License-Identifier: Apache-2.0
// A policy made of policies in sequence: their steps behind each other. That amounts and points fit each other is
// checked where steps are planned (layout/plan.h).
#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "espalier/pruning.h"

namespace espalier {

namespace {

class Pipeline final : public PruningPolicy {
 public:
  explicit Pipeline(std::vector<PolicyPtr> policies) : policies_(std::move(policies)) {}

  std::string spec() const override {
    std::string text;
    for (const PolicyPtr& policy : policies_) text += (text.empty() ? "" : " + ") + policy->spec();
    return text;
  }
  CommonOptions common() const override { return policies_.front()->common(); }
  bool row_breaks_compete() const override { return policies_.front()->row_breaks_compete(); }

  ImageShape wanted_shape(const ModelFacts& model, const ImageShape& shape) const override {
    ImageShape wanted = shape;
    for (const PolicyPtr& policy : policies_) wanted = policy->wanted_shape(model, wanted);
    return wanted;
  }

  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const override {
    check_row_breaks(prompt);
    std::vector<Step> all;
    for (const PolicyPtr& policy : policies_)
      for (Step& step : policy->steps(model, prompt)) {
        if (step.policy.empty()) step.policy = policy->spec();
        all.push_back(std::move(step));
      }
    return all;
  }

  PolicyPtr for_model(const ModelFacts& model) const override {
    std::vector<PolicyPtr> set;
    for (const PolicyPtr& policy : policies_) set.push_back(espalier::for_model(policy, model));
    return set == policies_ ? nullptr : std::make_shared<Pipeline>(std::move(set));
  }

 private:
  void check_row_breaks(const PromptLayout& prompt) const {
    const auto is_row_break = [](const Segment& s) { return s.kind == Segment::Kind::kRowBreak; };
    if (std::ranges::none_of(prompt.segments, is_row_break)) return;
    for (const PolicyPtr& policy : policies_)
      if (policy->row_breaks_compete() != row_breaks_compete())
        throw Error("pipeline: row breaks compete in one of " + policies_.front()->spec() + " and " + policy->spec() +
                    " and follow their rows in the other; set row_breaks alike");
  }

  std::vector<PolicyPtr> policies_;
};

}  // namespace

PolicyPtr for_model(PolicyPtr policy, const ModelFacts& model) {
  if (PolicyPtr set = policy->for_model(model)) return set;
  return policy;
}

PolicyPtr chain(std::vector<PolicyPtr> policies) {
  if (policies.empty()) throw Error("pipeline: there is no policy in it");
  for (const PolicyPtr& policy : policies)
    if (policy->common() != policies.front()->common())
      throw Error("pipeline: positions, min_per_image and min_tokens of " + policies.front()->spec() + " and " +
                  policy->spec() + " differ");
  if (policies.size() == 1) return policies.front();
  return std::make_shared<Pipeline>(std::move(policies));
}

}  // namespace espalier
