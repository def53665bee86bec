// SPDX-License-Identifier: Apache-2.0
// FastV: "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764), as docs/specs/fastv.md reads it.
//   K         layer, 0-based: layers 0 … K-1 see everything, the ranking is the attention of layer K-1
//   R, N, V   1 - keep_ratio; the pool, its image tokens
//   phi_attn  the probe's mean over query heads
// Differences from the released code:
//   - chosen once, at prefill; with `every` again while decoding, as the original does in every step, but from a cache:
//     what tokens before the newest had computed under other choices stays;
//   - all images compete, found by the layout; K = 0, which the paper fills at random, is the policy `random`.
#include "espalier/policies/fastv.h"

#include <ATen/ops/arange.h>

#include <memory>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {
namespace {

using O = FastvOptions;

// The caches of this layer and those behind it, by one ranking.
std::vector<Step> steps_again(const O& o, const ModelFacts& model) {
  const auto scores = std::make_shared<at::Tensor>();  // of the newest ask
  std::vector<Step> steps;
  for (int layer = o.layer; layer < model.num_layers; ++layer) {
    Step& step = steps.emplace_back(Step{.at = {Site::kCache, layer},
                                         .budget = {.pool = o.pool, .amount = o.amount},
                                         .every = o.every,
                                         .revives = true});
    if (layer == o.layer)
      step.needs = [o](const TokenLayout&) -> std::vector<Signal> { return {AttentionProbe{.layer = o.layer - 1}}; };
    step.decide = [scores](const TokenLayout&, std::span<const at::Tensor> signals) {
      if (!signals.empty()) *scores = signals[0];
      return Verdict{.scores = *scores};
    };
  }
  return steps;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  if (!acts_before("fastv", o.layer, model)) return {};
  if (o.every > 0) return steps_again(o, model);
  return {{.at = {Site::kBeforeLayer, o.layer},
           .budget = {.pool = o.pool, .amount = o.amount},
           .needs = [o](const TokenLayout& layout) -> std::vector<Signal> {
             if (o.rows == O::Rows::kLast) return {AttentionProbe{.layer = o.layer - 1}};
             const at::Tensor all = at::arange(layout.num_tokens(), layout.image_tokens.options());
             return {AttentionProbe{.layer = o.layer - 1, .rows = AttentionProbe::Rows::kGiven, .groups = {{all}}}};
           },
           .decide = by_first_signal}};
}

const Method<O>& method() {
  static const Method<O> method = {
      "fastv",
      {keep_ratio(&O::amount),
       num_kept(&O::amount),
       {"layer", &O::layer, "acts before this layer, ranking by the attention of the one before; K", at_least(1)},
       {"rows", &O::rows, {{"last", O::Rows::kLast}, {"all", O::Rows::kAll}}, "last prompt row; all averaged"},
       {"pool", &O::pool, kPoolWords, "request: all images compete; image: equal ratio each"},
       {"every", &O::every, "with each of so many generated tokens again, at the caches; 0: once, in prefill",
        at_least(0)},
       row_breaks(&O::row_breaks_compete)},
      steps,
      [](const O& o) {
        if (o.every > 0 && o.rows == O::Rows::kAll)
          throw Error("fastv: rows=all reads rows of the prompt, which are gone while decoding (every)");
      }};
  return method;
}

}  // namespace

PolicyPtr make_fastv(const O& options) {
  return make(method(), options);
}

PolicyRow fastv_row() {
  return row(method(), {.paper = "arXiv 2403.06764",
                        .summary = "tokens that get the least attention early leave",
                        .sites = {Site::kBeforeLayer, Site::kCache},
                        .needs = "attention of the last row in one layer",
                        .refusal = needs_layers<2>,
                        .examples = {{"fastv:keep_ratio=1/4,layer=3"}, {"fastv:num_kept=5,layer=1,rows=all"}}});
}

}  // namespace espalier
