// SPDX-License-Identifier: Apache-2.0
// The decoder over whole prompts, several sequences packed behind each other, with every policy acting at its own
// points on the way.
#pragma once

#include <span>
#include <vector>

#include "runtime/encode.h"
#include "runtime/kv_cache.h"
#include "runtime/sequence.h"

namespace espalier {

// What one decoder layer saw of one sequence, for recordings and dumps.
struct LayerView {
  int layer;
  size_t sequence;
  const TokenLayout& layout;  // of the tokens that entered
  at::Tensor hidden;          // [n, d] entering the layer
  at::Tensor query, key, lse;
};

struct PrefillHooks {
  CancelCheck should_cancel;
  Progress on_progress;
  std::function<void(const LayerView&)> on_layer;
  // A layer that a policy looked at before it ran (no lse): its own on_layer comes behind what the policy then dropped.
  std::function<void(const LayerView&)> on_look_ahead;
  // The residual stream that reaches a layer, before a policy acts there.
  std::function<void(int layer, const TokenLayout& layout, const at::Tensor& hidden)> on_state;
  std::function<void(size_t sequence)> on_acted = {};  // behind each act of its policy; its time counts in no stage
  // After the last layer: the residual stream of one sequence, before the final norm.
  std::function<void(size_t sequence, const TokenLayout& layout, const at::Tensor& hidden)> on_output;
  std::function<void(const at::Tensor& logits)> on_logits;  // what prefill() returns
};

// Runs encoded sequences through all layers and fills the cache, traces and statistics. Returns the logits of each
// sequence's last token, [b, vocab]. Throws Cancelled.
at::Tensor prefill(const LoadedModel& model, std::span<Sequence> sequences, KvCache& cache, const PrefillHooks& hooks);

}  // namespace espalier
