// SPDX-License-Identifier: Apache-2.0
// Attention ranking as in the motivation study of CATP (arXiv 2508.07871), docs/specs/catp.md, section 8.4: each image
// keeps the tokens that get the most attention, mean over heads and then over rows, in the layer before `layer`
// (0-based). The paper names neither layer nor rows, so both are options. Attention is taken as the layer gave it; rows
// before an image, which give it nothing, count in rows=all and move no order within it.
#include "espalier/policies/attention.h"

#include <ATen/ops/arange.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = AttentionOptions;
using Rows = O::Rows;

std::vector<Signal> needs(const O& o, const TokenLayout& layout) {
  AttentionProbe probe{.layer = o.layer - 1};
  if (o.rows == Rows::kLast) return {probe};
  probe.rows = AttentionProbe::Rows::kGiven;
  if (o.rows == Rows::kAll)
    probe.groups.push_back({.rows = at::arange(layout.num_tokens(), layout.image_tokens.options())});
  else if (o.rows == Rows::kQueryText)
    probe.groups.push_back(
        {.rows = text_tokens_at(layout, text_of_example(*layout.prompt, layout.prompt->query_example))});
  else
    probe.groups = own_text_groups(layout);
  return {probe};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  if (!acts_before("attention", o.layer, model)) return {};
  if (o.rows == Rows::kQueryText && text_of_example(prompt, prompt.query_example).empty())
    throw Error("attention: rows=query_text, but the query example has no text");
  // The last row, which an image without text takes, is behind all examples.
  const bool all_have_text =
      std::ranges::none_of(text_of_each_image(prompt), [](const auto& text) { return text.empty(); });
  return {{.at = {Site::kBeforeLayer, o.layer},
           .scope = o.rows == Rows::kOwnText && all_have_text ? Scope::kPrefix : Scope::kRequest,
           .budget = {.pool = Budget::Pool::kImage, .amount = o.amount},
           .needs = [o](const TokenLayout& layout) { return needs(o, layout); },
           .decide = by_first_signal}};
}

// Needed: it has no default.
Option<O> layer() {
  Option<O> option("layer", &O::layer, "acts before this layer, ranking by the attention of the one before; needed",
                   at_least(1));
  option.write = [](const O& o) { return o.layer == 0 ? std::string() : std::to_string(o.layer); };
  return option;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "attention",
      .options = {keep_ratio(&O::amount),
                  num_kept(&O::amount),
                  layer(),
                  {"rows",
                   &O::rows,
                   {{"all", Rows::kAll},
                    {"last", Rows::kLast},
                    {"own_text", Rows::kOwnText},
                    {"query_text", Rows::kQueryText}},
                   "whose attention, averaged: all; last; own_text, text of the image; query_text, of the query "
                   "example"},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_attention(const AttentionOptions& options) {
  return make(method(), options);
}

PolicyRow attention_row() {
  return row(method(), {.paper = "-",
                        .summary = "tokens that get the least attention leave, in each image by itself",
                        .sites = {Site::kBeforeLayer},
                        .needs = "attention of chosen rows in one layer",
                        .refusal = needs_layers<2>,
                        .examples = {{"attention:keep_ratio=1/3,layer=2,rows=own_text"},
                                     {"attention:num_kept=3,layer=4,row_breaks=follow"}}});
}

}  // namespace espalier
