// SPDX-License-Identifier: Apache-2.0
// One policy's way through one sequence: which point comes next, what it needs, and what its verdict makes of the
// layout. The same code serves a live run and a replay of recorded signals; only where the signals come from differs.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "espalier/generation.h"
#include "espalier/pruning.h"
#include "layout/cut.h"

namespace espalier {

struct PrefixWalk {
  TokenLayout layout;
};

class PolicyWalk {
 public:
  PolicyWalk(PolicyPtr policy, const ModelFacts& model, std::shared_ptr<const PromptLayout> prompt, std::shared_ptr<const PrefixWalk>) : PolicyWalk(policy, model, prompt) {}
  const ActPoint* boundary_point() const { return points_.empty() ? nullptr : &points_[0]; }
  PrefixWalk snapshot(int64_t) const { return {}; }
  bool fits(const PrefixWalk&) const { return false; }
  bool has_joined() const { return true; }
  bool is_at_boundary() const { return false; }
  void join() {}
  // Asks for the points and checks them: known sites, layers of the model, in the order of the data. Throws Error
  // naming the policy.
  PolicyWalk(PolicyPtr policy, const ModelFacts& model, std::shared_ptr<const PromptLayout> prompt);

  const ActPoint* next() const;  // nullptr after the last
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
  };
  Outcome act(std::span<const at::Tensor> signals);

  const TokenLayout& layout() const { return layout_; }
  const PruningPolicy& policy() const { return *policy_; }
  Positions positions() const { return positions_; }

  // Everything that happened so far, copied to the host.
  std::vector<PointTrace> trace(bool in_full) const;
  PointTrace last_point() const;  // of the last act, in full
  std::vector<int64_t> kept_sources() const;
  // What left a point that brought new vectors: for each image token behind it, in the new order, its row among the
  // tokens before the point or, from n on, n + the number of a new vector; the new vectors; the source index each token
  // stands at, -1 for none; and that of the token whose position id, image and crop it has. Nothing when point i added
  // none.
  struct Merged {
    at::Tensor index, vectors, source, position_from;
    TokenLayout before;
  };
  std::optional<Merged> merged(size_t i) const { return records_[i].merged; }

 private:
  struct Record {  // on the device until trace() is asked for
    ActPoint point;
    at::Tensor sources;        // [m] of the image tokens before
    at::Tensor kept_sources;   // [k] after, or [g, k]
    at::Tensor kept_per_head;  // at the cache: Outcome's
    at::Tensor scores, judged;
    std::vector<Note> notes;
    std::optional<Merged> merged;
    TokenLayout after;
  };
  static PointTrace trace_of(const Record& record, bool in_full);
  void ask_needs();

  PolicyPtr policy_;
  ModelFacts model_;
  Positions positions_;
  bool row_breaks_compete_;
  std::unique_ptr<PruningPolicy::State> state_;
  TokenLayout layout_;
  std::vector<ActPoint> points_;
  size_t next_ = 0;
  std::vector<Signal> needs_;
  int first_readable_layer_ = -1;
  std::vector<Record> records_;
};

// Throws Error naming policy and signal when the model lacks what is asked for or the point comes too early for it.
void check_signal(const Signal& signal, const ActPoint& point, const ModelFacts& model, int first_readable_layer,
                  std::string_view policy);

}  // namespace espalier
