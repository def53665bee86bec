// SPDX-License-Identifier: Apache-2.0
// VisionPulse: "VisionPulse: Dynamic Visual Sparsity for Efficient Multimodal Reasoning" (arXiv 2605.31457), as
// docs/specs/visionpulse.md reads abstract and released code.
//   p_h      the newest token's attention in the anchor layer, head h, over all rows
//   tau      temperature; p_h^(1/tau), normalised, is the attention of logits divided by tau
//   M        visual mass: the largest over heads of the image tokens' part of it
//   B        [least, most]
//   k        floor(N · clamp(M, B)), at least 1
// Readings of our own:
//   - mean logits rank as the mean of log p_h does: the two differ by a number that is the same for all tokens;
//   - a probability below the smallest float counts as that;
//   - what is chosen behind prefill is seen by nobody: the first generated token chooses anew.
#include "espalier/policies/visionpulse.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/logsumexp.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = VisionPulseOptions;

int64_t num_kept(const O& o, double mass, int64_t pool) {
  const int64_t least = rounded_share(o.least, pool, Rounding::kFloor);
  const int64_t most = rounded_share(o.most, pool, Rounding::kFloor);
  const auto wanted = static_cast<int64_t>(mass * static_cast<double>(pool));
  return std::clamp<int64_t>(std::clamp(wanted, least, most), std::min<int64_t>(1, pool), pool);
}

// attention [h, m + others].
Verdict select(const O& o, int64_t pool, int64_t present, const at::Tensor& attention) {
  const at::Tensor log = attention.to(at::kDouble).clamp_min(std::numeric_limits<float>::min()).log();
  const at::Tensor of_image = log.slice(1, 0, present);
  const at::Tensor mass = (at::logsumexp(of_image / o.tau, 1) - at::logsumexp(log / o.tau, 1))
                              .exp()
                              .amax(0);  // the number depends on it: waits
  return {.scores = of_image.mean(0).to(at::kFloat),
          .notes = {{"mass", mass.to(at::kFloat).unsqueeze(0)}},
          .num_kept = {num_kept(o, mass.item<double>(), pool)}};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int anchor = o.layer.value_or((17 * model.num_layers + 18) / 36);
  if (!acts_before("visionpulse", anchor, model)) return {};
  const int64_t pool = prompt.num_image_tokens(o.row_breaks_compete);
  const auto selection = std::make_shared<Verdict>();  // of the newest ask
  std::vector<Step> steps;
  for (int layer = anchor; layer < model.num_layers; ++layer) {
    Step& step = steps.emplace_back(
        Step{.at = {Site::kCache, layer}, .budget = {.is_adaptive = true}, .every = o.every, .revives = true});
    if (layer == anchor)
      step.needs = [anchor](const TokenLayout&) -> std::vector<Signal> {
        return {AttentionProbe{.layer = anchor, .heads = AttentionProbe::Heads::kEach, .with_others = true}};
      };
    step.decide = [o, pool, selection](const TokenLayout& layout, std::span<const at::Tensor> signals) {
      if (!signals.empty()) *selection = select(o, pool, layout.num_image_tokens(), signals[0]);
      return *selection;
    };
  }
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "visionpulse",
      .options = {{"layer", &O::layer, "anchor: it decides for itself and the layers behind it; at 17/36 of the depth",
                   at_least(0)},
                  {"tau", &O::tau, "temperature of the attention whose mass on images is the part that stays",
                   at_least(0.001)},
                  {"least", &O::least, "part of all image tokens that stays at least, rounded down", kShare},
                  {"most", &O::most, "part that stays at most", kShare},
                  {"every", &O::every, "generated tokens from choice to choice", at_least(1)},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = [](const O& o) {
        if (static_cast<double>(o.least.num) / static_cast<double>(o.least.den) >
            static_cast<double>(o.most.num) / static_cast<double>(o.most.den))
          throw Error("visionpulse: least=" + to_string(o.least) + " is above most=" + to_string(o.most));
      }};
  return method;
}

}  // namespace

PolicyPtr make_visionpulse(const VisionPulseOptions& options) {
  return make(method(), options);
}

PolicyRow visionpulse_row() {
  return row(method(),
             {.paper = "arXiv 2605.31457",
              .summary = "with each token one layer chooses how many image tokens, and which, later layers see",
              .sites = {Site::kCache},
              .needs = "attention of the newest token in one layer; no sliding window",
              .refusal = needs_no_window,
              .examples = {{"visionpulse"}, {"visionpulse:layer=2,tau=1,least=1/9,most=1/2"}}});
}

}  // namespace espalier
