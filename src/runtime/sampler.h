// SPDX-License-Identifier: Apache-2.0
// From a row of logits to the next token, as Transformers orders its processors: repetition penalty, temperature,
// top-k, top-p.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_set>
#include <vector>

#include "base/random.h"
#include "espalier/generation.h"
#include "model/generation_config.h"

namespace espalier {

// The options of a request with the checkpoint's defaults filled in. Throws Error for values out of range.
struct SamplingRules {
  bool do_sample = false;
  double temperature = 1.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double repetition_penalty = 1.0;
};
SamplingRules sampling_rules(const GenerationOptions& options, const GenerationConfig& defaults);

// Of the model's own logits, float32 [vocab]; `top` alternatives, or as many as there are.
TokenLogprobs logprobs_of(std::span<const float> logits, int32_t id, int64_t top);

class Sampler {
 public:
  // `prompt_ids` count for the penalty, image placeholders included.
  Sampler(const SamplingRules& rules, uint64_t seed, std::span<const int32_t> prompt_ids);

  // logits float32 [vocab]; changed in place. Greedy ties go to the lower id.
  int32_t next(std::span<float> logits);

 private:
  void penalise(std::span<float> logits) const;
  int32_t draw(std::span<float> logits);
  double uniform();  // in [0, 1)

  SamplingRules rules_;
  SplitMix64 draws_;
  std::unordered_set<int32_t> seen_;
};

}  // namespace espalier
