// SPDX-License-Identifier: Apache-2.0
// Persistence, a method of this library, as docs/specs/persistence.md defines it.
//   v_l      vote of layer l at one ask: its mean attention, over heads and the tokens generated since the ask before
//            (behind prefill the last prompt row), to each image token
//   lambda   decay
//   I_l      I_l <- lambda I_l + v_l; what the layers have said so far
//   I        the ranking of every layer's cache: sum over l of I_l
// A layer decides when its own vote has been added; votes of the layers behind it are those of the ask before. A freed
// token gets no more votes from its layer. Without revival the answer's tokens count in the amount.
#include "espalier/policies/persistence.h"

#include <ATen/TensorOperators.h>

#include <memory>

#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = PersistenceOptions;

// I_l of each layer that has voted.
using Votes = std::vector<at::Tensor>;

Verdict vote(Votes& votes, size_t layer, double decay, const at::Tensor& attention) {
  at::Tensor& own = votes[layer];
  own = own.defined() ? own * decay + attention : attention;
  at::Tensor importance;
  for (const at::Tensor& of_layer : votes)
    if (of_layer.defined()) importance = importance.defined() ? importance + of_layer : of_layer;
  return {.scores = importance};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout&) {
  if (!acts_before("persistence", o.layer, model)) return {};
  const auto votes = std::make_shared<Votes>(static_cast<size_t>(model.num_layers));
  std::vector<Step> steps;
  for (int layer = o.layer; layer < model.num_layers; ++layer)
    steps.push_back({.at = {Site::kCache, layer},
                     .budget = {.amount = o.amount},
                     .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
                       return {AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kGenerated}};
                     },
                     .decide =
                         [votes, layer, decay = o.decay](const TokenLayout&, std::span<const at::Tensor> signals) {
                           return vote(*votes, static_cast<size_t>(layer), decay, signals[0]);
                         },
                     .every = o.every,
                     .revives = o.revives,
                     .makes_room = !o.revives});
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "persistence",
      .options =
          {keep_ratio(&O::amount, "part of all image tokens, for each cache, a/b or a decimal; this or num_kept"),
           num_kept(&O::amount, "number for each cache; this or keep_ratio"),
           {"layer", &O::layer, "caches of layers before it stay whole", at_least(0)},
           {"every", &O::every, "generated tokens from choice to choice", at_least(1)},
           {"decay", &O::decay, "what is left of a vote from choice to choice; 1: nothing is forgotten", kShare},
           {"revival", &O::revives, kYesNo,
            "what leaves stays in memory and may return; no: it is freed, and the amount is of what stays and the "
            "answer together"},
           row_breaks(&O::row_breaks_compete)},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_persistence(const PersistenceOptions& options) {
  return make(method(), options);
}

PolicyRow persistence_row() {
  return row(method(), {.paper = "docs/specs/persistence.md",
                        .summary = "caches keep image tokens that layers and generated tokens refer to again and again",
                        .sites = {Site::kCache},
                        .needs = "attention of all generated tokens in every cut layer; no sliding window",
                        .refusal = needs_no_window,
                        .examples = {{"persistence:keep_ratio=1/3,every=2"},
                                     {"persistence:num_kept=7,every=1,decay=0.5,revival=yes"}}});
}

}  // namespace espalier
