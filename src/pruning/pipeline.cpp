// SPDX-License-Identifier: Apache-2.0
// A policy made of policies in sequence: each sees what the one before left, while every amount refers to the unpruned
// pool.
#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "pruning/planned_policy.h"

namespace espalier {

namespace {

// Place of a point in the flow of the data: before layer L, after its attention, its cache, before layer L + 1.
int64_t order_of(const ActPoint& point) {
  if (point.site < Site::kBeforeLayer) return static_cast<int64_t>(point.site);
  return static_cast<int64_t>(point.site) + 3 * int64_t{point.layer};
}

std::string describe(const ActPoint& point) {
  std::string text(name_of(point.site));
  if (point.site >= Site::kBeforeLayer) text += " " + std::to_string(point.layer);
  return text;
}

struct Step {
  size_t policy;  // which of them acts
  PlannedPoint planned;
};

struct PipelineState final : PruningPolicy::State {
  std::vector<Step> steps;
  std::vector<std::unique_ptr<PruningPolicy::State>> states;  // one a policy
  size_t next = 0;

  // The step that a point asks for: the next one at it. Two policies may act at one point.
  size_t step_at(const ActPoint& point) const {
    for (size_t i = 0; i < steps.size(); ++i) {
      const size_t step = (next + i) % steps.size();
      if (steps[step].planned.point == point) return step;
    }
    throw Error("pipeline: no policy acts at " + describe(point));
  }
};

class Pipeline final : public PlannedPolicy {
 public:
  explicit Pipeline(std::vector<PlannedPolicyPtr> policies)
      : PlannedPolicy("pipeline", policies.front()->common(), policies.front()->row_breaks_compete()),
        policies_(std::move(policies)) {}

  std::string spec() const override {
    std::string text;
    for (const auto& policy : policies_) text += (text.empty() ? "" : " + ") + policy->spec();
    return text;
  }

  ImageShape wanted_shape(const ModelFacts& model, const ImageShape& shape) const override {
    ImageShape wanted = shape;
    for (const auto& policy : policies_) wanted = policy->wanted_shape(model, wanted);
    return wanted;
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    std::vector<PlannedPoint> points;
    for (Step& step : steps(model, prompt)) points.push_back(std::move(step.planned));
    return points;
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const override {
    auto state = std::make_unique<PipelineState>();
    for (Step& step : steps(model, prompt))
      if (step.planned.may_drop) state->steps.push_back(std::move(step));
    for (const auto& policy : policies_) state->states.push_back(policy->begin_sequence(model, prompt));
    return state;
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State* state) const override {
    const auto& all = dynamic_cast<const PipelineState&>(*state);
    const size_t policy = all.steps[all.step_at(point)].policy;
    return policies_[policy]->needs(point, layout, all.states[policy].get());
  }

  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override {
    auto& all = dynamic_cast<PipelineState&>(*state);
    const size_t step = all.step_at(point);
    all.next = (step + 1) % all.steps.size();
    const size_t policy = all.steps[step].policy;
    return policies_[policy]->decide(point, layout, signals, all.states[policy].get());
  }

 private:
  std::vector<Step> steps(const ModelFacts& model, const PromptLayout& prompt) const;
  void check_row_breaks(const PromptLayout& prompt) const;
  void check_order(const Step& earlier, const Step& later) const;
  void check_amounts(const Step& earlier, const Step& later) const;

  std::vector<PlannedPolicyPtr> policies_;
};

void Pipeline::check_row_breaks(const PromptLayout& prompt) const {
  const bool has_row_breaks = std::any_of(prompt.segments.begin(), prompt.segments.end(),
                                          [](const Segment& s) { return s.kind == Segment::Kind::kRowBreak; });
  if (!has_row_breaks) return;
  for (const auto& policy : policies_)
    if (policy->row_breaks_compete() != row_breaks_compete())
      throw Error("pipeline: row breaks compete in one of " + policies_.front()->spec() + " and " + policy->spec() +
                  " and follow their rows in the other; set row_breaks alike");
}

void Pipeline::check_order(const Step& earlier, const Step& later) const {
  if (order_of(later.planned.point) >= order_of(earlier.planned.point)) return;
  throw Error("pipeline: " + policies_[later.policy]->spec() + " acts at " + describe(later.planned.point) +
              ", which comes before " + describe(earlier.planned.point) + " of " + policies_[earlier.policy]->spec());
}

void Pipeline::check_amounts(const Step& earlier, const Step& later) const {
  const auto refuse = [&](int64_t wanted, int64_t there, const std::string& where) {
    throw Error("pipeline: " + policies_[later.policy]->spec() + " keeps " + std::to_string(wanted) + " tokens" +
                where + ", but " + policies_[earlier.policy]->spec() + " leaves " + std::to_string(there));
  };
  const PlannedPoint &before = earlier.planned, &after = later.planned;
  if (*after.tokens_left > *before.tokens_left) refuse(*after.tokens_left, *before.tokens_left, "");
  const auto &there = before.tokens_left_per_image, &wanted = after.tokens_left_per_image;
  for (size_t i = 0; i < std::min(there.size(), wanted.size()); ++i)
    if (wanted[i] > there[i]) refuse(wanted[i], there[i], " of image " + std::to_string(i));
}

std::vector<Step> Pipeline::steps(const ModelFacts& model, const PromptLayout& prompt) const {
  check_row_breaks(prompt);
  std::vector<Step> steps;
  std::optional<size_t> acts, counts;  // the latest step that may drop, and the latest with a known number left
  for (size_t i = 0; i < policies_.size(); ++i) {
    for (PlannedPoint& planned : policies_[i]->plan(model, prompt)) {
      const size_t now = steps.size();
      Step& step = steps.emplace_back(Step{i, std::move(planned)});
      if (step.planned.tokens_left &&
          step.planned.point.site != Site::kCache) {  // a cache does not shorten the sequence
        if (counts) check_amounts(steps[*counts], step);
        const auto& of_images = step.planned.tokens_left_per_image;
        if (counts && !of_images.empty() && of_images == steps[*counts].planned.tokens_left_per_image)
          step.planned.may_drop = false;  // the earlier policy has done it all
        counts = now;
      }
      if (step.planned.may_drop) {
        if (acts) check_order(steps[*acts], step);
        acts = now;
      }
    }
  }
  return steps;
}

}  // namespace

PolicyPtr make_pipeline(std::vector<PlannedPolicyPtr> policies) {
  const CommonOptions first = policies.front()->common();
  for (const auto& policy : policies) {
    const CommonOptions other = policy->common();
    if (other.positions != first.positions || other.min_per_image != first.min_per_image ||
        other.min_tokens != first.min_tokens)
      throw Error("pipeline: positions, min_per_image and min_tokens of " + policies.front()->spec() + " and " +
                  policy->spec() + " differ");
  }
  return std::make_shared<Pipeline>(std::move(policies));
}

}  // namespace espalier
