// SPDX-License-Identifier: Apache-2.0
#include "layout/policy_walk.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "layout/check_signal.h"

namespace espalier {

namespace {

// Steps below the first that looks at all of the request.
size_t boundary_of(const std::vector<PlannedStep>& steps, const CommonOptions& common) {
  if (common.min_tokens > 0) return 0;
  const auto looks_at_all = [](const PlannedStep& s) {
    return s.step.scope == Scope::kRequest || s.step.at.site == Site::kCache;
  };
  return static_cast<size_t>(std::ranges::find_if(steps, looks_at_all) - steps.begin());
}

RowsLeft rows_left(const at::Tensor& kept_per_head, int64_t num_image_tokens) {
  const at::Tensor none =
      at::zeros({kept_per_head.size(0), num_image_tokens}, kept_per_head.options().dtype(at::kBool));
  return {none.scatter(1, kept_per_head, true), kept_per_head.size(1)};
}

// The example that begins at `end`. All before it belong to the prefix, none from it on.
int example_at(const PromptLayout& prompt, int64_t end) {
  int before = -1, at = -1;
  bool is_start = false;
  for (const Segment& s : prompt.segments) {
    if (s.begin == end) at = s.example, is_start = true;
    if (s.begin < end) before = std::max(before, s.example);
    if (s.begin >= end && (s.example <= before || s.example < at)) is_start = false;
  }
  if (!is_start || end <= 0)
    throw Error("layout: no example begins at token " + std::to_string(end) + ", so no prefix ends there");
  return at;
}

bool is_equal_up_to(const PromptLayout& a, const PromptLayout& b, int64_t end) {
  for (size_t i = 0;; ++i) {
    const bool a_ends = i == a.segments.size() || a.segments[i].begin >= end;
    const bool b_ends = i == b.segments.size() || b.segments[i].begin >= end;
    if (a_ends || b_ends) return a_ends && b_ends;
    const Segment &s = a.segments[i], &t = b.segments[i];
    if (s.kind != t.kind || s.begin != t.begin || s.end != t.end || s.image != t.image || s.crop != t.crop ||
        s.example != t.example || s.grid != t.grid || s.origin != t.origin)
      return false;
    if (s.image < 0) continue;
    const ImageShape &x = a.images[static_cast<size_t>(s.image)], &y = b.images[static_cast<size_t>(t.image)];
    if (x.grid != y.grid || x.tiling != y.tiling) return false;
    if (a.pinned_per_image[static_cast<size_t>(s.image)] != b.pinned_per_image[static_cast<size_t>(t.image)])
      return false;
  }
}

}  // namespace

std::string_view name_of(Site site) {
  switch (site) {
    case Site::kVisionOutput:
      return "vision_output";
    case Site::kProjectorOutput:
      return "projector_output";
    case Site::kBeforeLayer:
      return "before_layer";
    case Site::kAfterAttention:
      return "after_attention";
    case Site::kCache:
      return "cache";
  }
  return "";
}

std::string to_string(const ActPoint& point) {
  std::string text(name_of(point.site));
  if (point.site >= Site::kBeforeLayer) text += " " + std::to_string(point.layer);
  return text;
}

PolicyWalk::PolicyWalk(PolicyPtr policy, const ModelFacts& model, const std::shared_ptr<const PromptLayout>& prompt)
    : policy_(std::move(policy)),
      model_(model),
      spec_(policy_->spec()),
      common_(policy_->common()),
      positions_(common_.positions),
      steps_(plan_steps(*policy_, model, *prompt)),
      boundary_(boundary_of(steps_, common_)),
      layout_(full_layout(prompt, policy_->row_breaks_compete())) {
  if (positions_ == Positions::kCompact && prompt->position_id.dim() != 1)
    throw Error(spec_ + ": positions=compact is not possible with three-part position ids");
  ask_needs();
}

PolicyWalk::PolicyWalk(PolicyPtr policy, const ModelFacts& model, const std::shared_ptr<const PromptLayout>& prompt,
                       std::shared_ptr<const PrefixWalk> prefix)
    : PolicyWalk(std::move(policy), model, prompt) {
  if (!fits(*prefix)) throw Error(spec_ + ": the prefix was not walked as this request would walk it");
  prefix_ = std::move(prefix);
  layout_ = full_layout(prompt, policy_->row_breaks_compete(), prefix_->end);
  ask_needs();
}

const ActPoint* PolicyWalk::next() const {
  return next_ < steps_.size() && !waits_for_prefix() ? &steps_[next_].step.at : nullptr;
}

bool PolicyWalk::is_next(Site site, int layer) const {
  const ActPoint* point = next();
  return point && point->site == site && (site < Site::kBeforeLayer || point->layer == layer);
}

std::vector<ActPoint> PolicyWalk::points() const {
  std::vector<ActPoint> points;
  for (const PlannedStep& planned : steps_) points.push_back(planned.step.at);
  return points;
}

void PolicyWalk::ask_needs() {
  needs_.clear();
  // Behind a prefix there may be no image at all.
  if (!next() || (!has_joined() && layout_.num_image_tokens() == 0)) return;
  const Step& step = steps_[next_].step;
  if (step.needs) needs_ = step.needs(layout_);
  for (const Signal& signal : needs_) check_signal(signal, step, model_, first_readable_layer_);
}

// int64 [KV heads, k], checked.
at::Tensor PolicyWalk::kept_of_heads(const Cut& cut, const TokenLayout& layout, const Step& step) const {
  const std::string where = step.policy + ": at " + to_string(step.at) + ": ";
  if (!cut.added.empty()) throw Error(step.policy + ": new tokens cannot enter at " + to_string(step.at));
  if (!cut.kept.defined() || cut.kept.scalar_type() != at::kLong || cut.kept.dim() < 1 || cut.kept.dim() > 2)
    throw Error(where + "kept must be int64 [k] or [KV heads, k]");
  const at::Tensor kept = cut.kept.dim() == 2 ? cut.kept : cut.kept.expand({model_.num_kv_heads, -1});
  if (kept.size(0) != model_.num_kv_heads)
    throw Error(where + "kept has " + std::to_string(kept.size(0)) + " rows for " +
                std::to_string(model_.num_kv_heads) + " KV heads");
  for (const at::Tensor& of_head : kept.unbind()) check_kept(of_head, layout.num_image_tokens(), step.policy);
  return kept;
}

bool PolicyWalk::asks_again() const {
  return std::ranges::any_of(steps_, [](const PlannedStep& planned) { return planned.step.every > 0; });
}

PolicyWalk::Outcome PolicyWalk::act_again(size_t i, int64_t generated, std::span<const at::Tensor> signals) {
  StepAgain& again = again_[i];
  const Step& step = again.step();
  const TokenLayout& layout = again.layout;
  const Cut cut = cut_of(layout, with_room(again.planned, generated), step.decide(layout, signals),
                         common_.min_per_image, again.left);
  Outcome outcome{.applied = {}, .kept_per_head = kept_of_heads(cut, layout, step), .step = &step};
  if (again.left.mask.defined()) {
    if (!again.left.mask.gather(1, outcome.kept_per_head).all().item<bool>())
      throw Error(step.policy + ": at " + to_string(step.at) + ": it keeps tokens whose rows were freed before");
    again.left = rows_left(outcome.kept_per_head, layout.num_image_tokens());
  }
  if (!remembers_answer_ && records_.back().generated > 0) records_.pop_back();
  WalkRecord record;
  record.point = step.at;
  record.generated = generated;
  record.before = record.after = layout;
  record.kept = outcome.kept_per_head;
  record.scores = cut.scores;
  record.judged = cut.judged;
  record.notes = cut.notes;
  records_.push_back(std::move(record));
  return outcome;
}

PolicyWalk::Outcome PolicyWalk::act(std::span<const at::Tensor> signals) {
  const PlannedStep& planned = steps_[next_];
  const Step& step = planned.step;
  Cut cut;
  if (!has_joined() && layout_.num_image_tokens() == 0)
    cut.kept = at::arange(0, layout_.image_tokens.options());
  else
    cut = cut_of(layout_, with_room(planned, 0), step.decide(layout_, signals), common_.min_per_image);
  WalkRecord record;
  record.point = step.at;
  record.before = layout_;
  record.scores = cut.scores;
  record.judged = cut.judged;
  record.notes = cut.notes;
  Outcome outcome;
  outcome.step = &step;
  if (step.at.site == Site::kCache) {
    outcome.kept_per_head = kept_of_heads(cut, layout_, step);
    if (step.every > 0) {
      again_.push_back({planned, layout_, needs_});
      if (!step.revives) again_.back().left = rows_left(outcome.kept_per_head, layout_.num_image_tokens());
    }
    record.kept = outcome.kept_per_head;
  } else {
    // Ids of a compact sequence count on from the prefix, and change where only the prefix lost something.
    const bool is_behind = prefix_ && !has_joined_;
    const WalkRecord* front = is_behind ? &prefix_->records[next_] : nullptr;
    outcome.applied = apply_cut(layout_, cut, positions_, step.policy, front ? front->after.num_tokens() : 0,
                                front && front->after.num_tokens() != front->before.num_tokens());
    layout_ = outcome.applied.layout;
    // Tokens that stay as themselves; one that stays with a new vector in its place is reported as merged.
    record.kept = cut.kept;
    if (outcome.applied.has_new_tokens) {
      const auto of_image_tokens = [&](const at::Tensor& t) { return t.index_select(0, layout_.image_tokens); };
      record.merged = Merged{
          of_image_tokens(outcome.applied.index), outcome.applied.new_vectors, of_image_tokens(layout_.source_index),
          record.before.source_index.index_select(0, of_image_tokens(outcome.applied.facts_from)), record.before};
    }
  }
  record.after = layout_;
  records_.push_back(std::move(record));
  first_readable_layer_ = step.at.site < Site::kBeforeLayer    ? 0
                          : step.at.site == Site::kBeforeLayer ? step.at.layer
                                                               : step.at.layer + 1;
  ++next_;
  ask_needs();
  return outcome;
}

PrefixWalk PolicyWalk::snapshot(int64_t end) const {
  if (next_ != boundary_ || !has_joined())
    throw Error(spec_ + ": a prefix is taken where the walk stands at its boundary");
  const int example = example_at(*layout_.prompt, end);
  PrefixWalk prefix{
      .end = end, .prompt = layout_.prompt, .layout = front_of(layout_, example), .records = {}, .spec = spec_};
  for (const WalkRecord& record : records_) prefix.records.push_back(front_of(record, example));
  return prefix;
}

bool PolicyWalk::fits(const PrefixWalk& prefix) const {
  if (prefix.spec != spec_ || prefix.records.size() != boundary_ || prefix.end > layout_.prompt->num_tokens)
    return false;
  for (size_t i = 0; i < boundary_; ++i)
    if (prefix.records[i].point != steps_[i].step.at) return false;
  return is_equal_up_to(*prefix.prompt, *layout_.prompt, prefix.end);
}

void PolicyWalk::join() {
  if (!prefix_ || has_joined_ || next_ != boundary_)
    throw Error(spec_ + ": a prefix is joined once, where the walk after it stands at the boundary");
  layout_ = joined(prefix_->layout, layout_);
  for (size_t i = 0; i < records_.size(); ++i) records_[i] = joined(prefix_->records[i], records_[i]);
  has_joined_ = true;
  ask_needs();
}

std::vector<PointTrace> PolicyWalk::trace(bool in_full) const {
  std::vector<PointTrace> points;
  for (const WalkRecord& record : records_)
    if (remembers_answer_ || record.generated == 0) points.push_back(trace_of(record, in_full));
  return points;
}

PointTrace PolicyWalk::last_point() const {
  return trace_of(records_.back(), /*in_full=*/true);
}

// What the last point that shortened the sequence left as it was: a merged token is none that survived.
std::vector<int64_t> PolicyWalk::kept_sources() const {
  const auto last = std::ranges::find_if(records_.rbegin(), records_.rend(),
                                         [](const WalkRecord& r) { return r.point.site != Site::kCache; });
  const at::Tensor sources =
      last != records_.rend() ? last->kept_sources() : layout_.source_index.index_select(0, layout_.image_tokens);
  const at::Tensor host = sources.cpu().contiguous();
  std::vector<int64_t> kept(host.const_data_ptr<int64_t>(), host.const_data_ptr<int64_t>() + host.numel());
  std::erase_if(kept, [](int64_t source) { return source < 0; });
  std::ranges::sort(kept);
  return kept;
}

}  // namespace espalier
