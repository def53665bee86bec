// SPDX-License-Identifier: Apache-2.0
// One request on its way through the model: everything about it that changes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "espalier/generation.h"
#include "layout/policy_walk.h"
#include "runtime/device_stopwatch.h"
#include "runtime/prompt_packer.h"

namespace espalier {

// By-products of one attention layer, kept until the act point that asked for them.
struct LayerTrace {
  at::Tensor query;  // [n, h, d_h] after RoPE
  at::Tensor key;    // [n, g, d_h]
  at::Tensor lse;    // float32 [h, n]
};

struct Sequence {
  Sequence(PackedPrompt packed, PolicyPtr policy, const ModelFacts& facts)
      : prompt(std::move(packed)), walk(std::move(policy), facts, prompt.layout) {}

  PackedPrompt prompt;
  PolicyWalk walk;
  at::Tensor hidden;                   // [n, d] decoder input, after encode
  std::map<int, LayerTrace> traces;    // by decoder layer
  std::vector<int64_t> next_position;  // of the first generated token, by layer (layers differ with positions=compact)
  std::vector<at::Tensor> image_of_tokens;  // [layer]: image of each token entering it, -1 for text; for statistics
  // Set by encode, read when the answer is there: asking earlier would make the host wait for the device.
  std::optional<DeviceStopwatch> encoding, selecting;
  Stats stats;
};

}  // namespace espalier
