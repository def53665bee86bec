// SPDX-License-Identifier: Apache-2.0
// What a run computed, as arrays: the signals that policies read; and what a policy makes of them without a model. The
// same as `espalier record` and `espalier replay`, in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/pruning.h"

namespace espalier {

struct Recording {
  std::string layout;                         // JSON: layout.json of docs/formats.md
  std::map<std::string, at::Tensor> signals;  // float32 on the CPU; names and shapes of docs/formats.md
};

// Runs encode and prefill of the request with its policy on the engine's own thread. `only`: names ("attention.5") or
// families ("hidden") of what is recorded; empty: all, whole attention maps of every layer among them. Rows and columns
// of tokens that are gone are zeros. `generated`: so many tokens of the answer too, fewer where it ends before; 0 or
// more. Nothing when a callback cancels. Throws Error for a request that cannot be served and for a name of which
// nothing is recorded.
std::optional<Recording> record(const Engine& engine, const Request& request, const std::vector<std::string>& only = {},
                                const Callbacks& callbacks = {}, int64_t generated = 0);

// A point of a replay.
struct ReplayedPoint {
  PointTrace trace;  // in full
  // Where vectors entered: those of all image tokens that leave the point, image by image and crop by crop, float32
  // [r, d]; the source index each stands at, -1: none; and that of the token whose position id, image and crop it has.
  at::Tensor merged = {};
  std::vector<int64_t> merged_source = {};
  std::vector<int64_t> merged_position_from = {};
};
struct Replayed {
  std::vector<ReplayedPoint> points;
  std::vector<int64_t> kept;  // source indices of the image tokens that survive all points, ascending
};

// Walks the policy's points, those while decoding among them as far as tokens of the answer were recorded: survivors'
// rows and columns are gathered, nothing is renormalised or computed again.
// Throws Error when a signal that the policy needs was not recorded (naming it), or an array contradicts the layout.
Replayed replay(const PolicyPtr& policy, const Recording& recording);

}  // namespace espalier
