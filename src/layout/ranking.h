// SPDX-License-Identifier: Apache-2.0
// From a verdict to a cut: a ranking becomes a kept set here, for every policy alike. Nothing waits for the device
// unless the data decide how many stay.
#pragma once

#include <vector>

#include "espalier/pruning.h"
#include "layout/plan.h"

namespace espalier {

// What a step does to the sequence that it was asked about.
struct Cut {
  at::Tensor kept = {};  // int64 [k] ordinals of image_tokens, ascending; at kCache also [KV heads, k]
  std::vector<NewTokens> added = {};
  bool crop_by_crop = false;
  std::vector<int64_t> known_per_image = {};  // image tokens of each image behind it, where the host knows
  // For traces.
  at::Tensor scores = {};  // float32 [m]
  at::Tensor judged = {};  // bool [m]; undefined: all
  std::vector<Note> notes = {};
};

// Image tokens that each KV head still has in a cache of which rows were freed; as many in each.
struct RowsLeft {
  at::Tensor mask = {};  // bool [KV heads, m]; undefined: all
  int64_t count = 0;     // of each head
};

// Throws Error, naming the policy of the step, when the verdict is none. With `left`, only these can be kept, and the
// cut is made for each KV head.
Cut cut_of(const TokenLayout& layout, const PlannedStep& planned, Verdict verdict, int64_t min_per_image,
           const RowsLeft& left = {});

}  // namespace espalier
