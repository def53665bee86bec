// SPDX-License-Identifier: Apache-2.0
// FastV: "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764), as docs/specs/fastv.md reads it.
//   K         layer, 0-based: layers 0 … K-1 see everything, the ranking is the attention of layer K-1
//   R, N, V   1 - keep_ratio; the pool, its image tokens
//   phi_attn  the probe's mean over query heads
// Differences from the released code:
//   - chosen once, at prefill (the original chooses again in every step);
//   - all images compete, found by the layout; K = 0, which the paper fills at random, is the policy `random`.
#include "espalier/policies/fastv.h"

#include <ATen/ops/arange.h>

#include "pruning/built_in.h"

namespace espalier {
namespace {

using O = FastvOptions;

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  if (!acts_before("fastv", o.layer, model)) return {};
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
       row_breaks(&O::row_breaks_compete)},
      steps};
  return method;
}

}  // namespace

PolicyPtr make_fastv(const O& options) {
  return make(method(), options);
}

PolicyRow fastv_row() {
  return row(method(), {.paper = "arXiv 2403.06764",
                        .summary = "tokens that get the least attention early leave",
                        .sites = {Site::kBeforeLayer},
                        .needs = "attention of the last row in one layer",
                        .refusal = needs_layers<2>,
                        .examples = {{"fastv:keep_ratio=1/4,layer=3"}, {"fastv:num_kept=5,layer=1,rows=all"}}});
}

}  // namespace espalier
