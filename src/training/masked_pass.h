// SPDX-License-Identifier: Apache-2.0
// The decoder over packed training sequences under a policy that learns: nothing is removed; what a soft mask takes
// from an image token is the weight of its key in every later layer (ATP, docs/specs/atp_llava.md 4.2). The steps are
// those of model/decoder.h, as in inference. What is asked of the model, and which loss, is not known here.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <span>
#include <vector>

#include "espalier/pruning.h"
#include "model/config.h"
#include "model/weights.h"

namespace espalier {

// A prompt and, behind it, the answer that it is trained to give. The policy sees the prompt alone, as in inference.
struct MaskedSequence {
  std::shared_ptr<const PromptLayout> prompt;
  at::Tensor embedding;    // [n, d] decoder input
  at::Tensor position_id;  // int64 [n], or [3, n] with M-RoPE
};

// What the masks of one sequence came to.
struct MaskTrace {
  std::vector<int> layers;           // before which the policy acted
  std::vector<at::Tensor> presence;  // behind each: product of all masks so far, [m] image tokens
};

struct MaskedPass {
  at::Tensor hidden;              // [sum of n, d] behind the last layer
  std::vector<MaskTrace> traces;  // one a sequence
};

// The policy may act before layers and read mean attention of given rows there. Its masks multiply (a token that is
// gone stays gone), and the rows of a token count in later scores by what is left of it: with masks of 0 and 1 all
// other tokens, later masks among them, are what they are with the tokens removed. A row break has the weight of the
// patch of its row that has the most. Differentiable in embeddings, weights and whatever the policy's masks depend on.
MaskedPass run_masked(const DecoderConfig& config, const DecoderWeights& weights, const ModelFacts& facts,
                      const PruningPolicy& policy, std::span<const MaskedSequence> sequences);

// Mean over `rows`, each by its weight, of the probability that heads give on the average to `columns` (int64, token
// indices of one sequence): a plain differentiable form. query [n, h, d_h], key [n, g, d_h], lse [h, n] of attention
// with `weight` [n] as its key weight (undefined: all 1); causal, with a window on position ids when it is above 0.
at::Tensor attention_received(const at::Tensor& query, const at::Tensor& key, const at::Tensor& lse,
                              const at::Tensor& rows, const at::Tensor& columns, const at::Tensor& weight, double scale,
                              int64_t window = 0, const at::Tensor& position_id = {});

}  // namespace espalier
