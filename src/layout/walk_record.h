// SPDX-License-Identifier: Apache-2.0
// What a walk remembers of a step, on the device until a trace is asked for; and how records of a prompt's beginning
// and of the rest become one.
#pragma once

#include <optional>
#include <vector>

#include "espalier/pruning.h"
#include "espalier/trace.h"
#include "layout/cut.h"

namespace espalier {

// What left a point that brought new vectors: for each image token behind it, in the new order, its row among the
// tokens before the point or, from n on, n + the number of a new vector; the new vectors; the source index each token
// stands at, -1 for none; and that of the token whose position id, image and crop it has.
struct MergedTokens {
  at::Tensor index, vectors, source, position_from;
  TokenLayout before;
};

struct WalkRecord {
  ActPoint point;
  int64_t generated = 0;  // as in PointTrace
  TokenLayout before, after;
  at::Tensor kept;  // int64 ordinals of before's image tokens: [k], or [KV heads, k] at a cache
  at::Tensor scores, judged;
  std::vector<Note> notes;
  std::optional<MergedTokens> merged;

  at::Tensor sources() const;       // of the image tokens before, [m]
  at::Tensor kept_sources() const;  // as `kept`
};

// What it says of the tokens of examples before `example`. Waits for the device. Not for a cache.
WalkRecord front_of(const WalkRecord& record, int example);
// Two of one point, of the tokens in front and of those behind them.
WalkRecord joined(const WalkRecord& front, const WalkRecord& back);

PointTrace trace_of(const WalkRecord& record, bool in_full);

}  // namespace espalier
