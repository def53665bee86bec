// SPDX-License-Identifier: Apache-2.0
// One policy's way through one sequence: which step comes next, what it needs, and what its verdict makes of the
// layout. The same code serves a live run and a replay of recorded signals; only where the signals come from differs.
//
// Behind a cached prefix a walk takes the new tokens alone through the steps below the boundary, whose verdicts do not
// depend on what stands behind them; join() then puts the prefix in front, and the other steps see all tokens.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "espalier/pruning.h"
#include "layout/cut.h"
#include "layout/plan.h"
#include "layout/ranking.h"
#include "layout/walk_record.h"

namespace espalier {

// A walk's tokens before source index `end`, as they stand at the boundary. Immutable; shared by walks and threads.
struct PrefixWalk {
  int64_t end = 0;                             // where an example begins, never inside an image
  std::shared_ptr<const PromptLayout> prompt;  // of the walk it was taken from; equal to another's up to `end`
  TokenLayout layout;
  std::vector<WalkRecord> records;  // one for each step below the boundary
  std::string spec;
};

// A step that is asked again while decoding (Step::every), as it stood behind prefill.
struct StepAgain {
  const Step& step() const { return planned.step; }
  bool is_due(int64_t generated) const { return generated % planned.step.every == 0; }

  PlannedStep planned;
  TokenLayout layout;
  std::vector<Signal> needs;  // attention probes
  RowsLeft left = {};         // where rows are freed
};

class PolicyWalk {
 public:
  // Asks for the steps and checks them (plan.h). Throws Error naming the policy.
  PolicyWalk(PolicyPtr policy, const ModelFacts& model, const std::shared_ptr<const PromptLayout>& prompt);
  // The same for the tokens behind `prefix`. Throws Error unless it fits().
  PolicyWalk(PolicyPtr policy, const ModelFacts& model, const std::shared_ptr<const PromptLayout>& prompt,
             std::shared_ptr<const PrefixWalk> prefix);

  // nullptr after the last; with a prefix, also at the boundary until join().
  const ActPoint* next() const;
  bool is_next(Site site, int layer = 0) const;
  const std::vector<Signal>& needs() const { return needs_; }  // of next()
  // The first decoder layer that had not run when needs() were asked for: a signal may read none before it. -1 before
  // the policy's first point, when the vision tower can still be read.
  int first_readable_layer() const { return first_readable_layer_; }

  // What an act came to. At kCache `per_head` holds the kept tokens of that layer, int64 [g, k] indices into the
  // current sequence's image tokens, and the layout is left alone.
  struct Outcome {
    Applied applied;
    at::Tensor kept_per_head;
    const Step* step = nullptr;  // of the walk
  };
  Outcome act(std::span<const at::Tensor> signals);

  // ---- while decoding ----
  // True of a policy with steps that are asked again. Their closures are one answer's own: such a walk is not copied
  // when it has begun.
  bool asks_again() const;
  // These steps, in the order of the data, as far as prefill has come to them.
  std::span<const StepAgain> again() const { return again_; }
  // The verdict of again()[i], which is due with generated token number `generated`, 1, 2, …: as at kCache.
  Outcome act_again(size_t i, int64_t generated, std::span<const at::Tensor> signals);
  // No more than the latest record of a step that was asked again is remembered, and trace() leaves it out: an answer
  // may have many.
  void forget_answer() { remembers_answer_ = false; }

  const TokenLayout& layout() const { return layout_; }
  const PruningPolicy& policy() const { return *policy_; }
  Positions positions() const { return positions_; }
  const std::vector<PlannedStep>& steps() const { return steps_; }  // all that this request visits
  std::vector<ActPoint> points() const;

  // ---- prefixes ----
  // Number of steps below the first whose verdict may depend on all of the request (or that cuts a cache): what they
  // decide about a prefix holds whatever stands behind it. 0 where min_tokens counts all of the request.
  size_t boundary() const { return boundary_; }
  // Where join() is due: the point of the step at the boundary; nullptr: behind the last layer.
  const ActPoint* boundary_point() const { return boundary_ < steps_.size() ? &steps_[boundary_].step.at : nullptr; }
  bool is_at_boundary() const { return next_ == boundary_; }
  // Of a walk that stands at its boundary. `end`: source index where an example begins. Throws Error for another place.
  // Waits for the device.
  PrefixWalk snapshot(int64_t end) const;
  // Whether this walk, not begun yet, would take the prefix's tokens through the same steps to the same place.
  bool fits(const PrefixWalk& prefix) const;
  bool has_joined() const { return !prefix_ || has_joined_; }
  // Once, at the boundary of a walk behind a prefix: layout() and everything below are then those of the whole prompt.
  void join();

  // Everything that happened so far, copied to the host.
  std::vector<PointTrace> trace(bool in_full) const;
  PointTrace last_point() const;  // of the last act, in full
  std::vector<int64_t> kept_sources() const;
  using Merged = MergedTokens;
  // Nothing when point i added none.
  std::optional<Merged> merged(size_t i) const { return records_[i].merged; }

 private:
  void ask_needs();
  at::Tensor kept_of_heads(const Cut& cut, const TokenLayout& layout, const Step& step) const;
  bool waits_for_prefix() const { return !has_joined() && next_ == boundary_; }

  PolicyPtr policy_;
  ModelFacts model_;
  std::string spec_;
  CommonOptions common_;
  Positions positions_;
  std::vector<PlannedStep> steps_;
  size_t boundary_ = 0;
  std::shared_ptr<const PrefixWalk> prefix_;  // none: the walk is of the whole prompt
  bool has_joined_ = false;
  TokenLayout layout_;
  size_t next_ = 0;
  std::vector<Signal> needs_;
  int first_readable_layer_ = -1;
  std::vector<StepAgain> again_;
  bool remembers_answer_ = true;
  std::vector<WalkRecord> records_;  // those of prefill first
};

}  // namespace espalier
