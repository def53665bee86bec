// SPDX-License-Identifier: Apache-2.0
// Attention ranking as in the motivation study of CATP (arXiv 2508.07871), docs/specs/catp.md, section 8.4: each image
// keeps the tokens that get the most attention, mean over heads and then over rows, in the layer before `layer`
// (0-based). The paper names neither layer nor rows, so both are options. Attention is taken as the layer gave it; rows
// before an image, which give it nothing, count in rows=all and move no order within it.
#include "espalier/policies/attention.h"

#include <ATen/ops/arange.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Rows = AttentionOptions::Rows;

constexpr ValueNames<Rows, 4> kRows = {
    {{"all", Rows::kAll}, {"last", Rows::kLast}, {"own_text", Rows::kOwnText}, {"query_text", Rows::kQueryText}}};

class Attention final : public PlannedPolicy {
 public:
  explicit Attention(const AttentionOptions& options)
      : PlannedPolicy("attention", options.common, options.row_breaks_compete), options_(options) {
    check_amount("attention", options.amount);
    if (options.layer < 1) throw Error("attention: layer is needed, 1 or more; got " + std::to_string(options.layer));
  }

  std::string spec() const override {
    const AttentionOptions defaults;
    return SpecWriter("attention")
        .amount(options_.amount)
        .add("layer", int64_t{options_.layer}, defaults.layer)
        .choice("rows", options_.rows, defaults.rows, kRows)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (options_.layer > model.num_layers)
      throw Error("attention: layer=" + std::to_string(options_.layer) + ", but the model has " +
                  std::to_string(model.num_layers) + " layers");
    const std::vector<int64_t> kept = kept_per_image(pool_rule(options_.amount), prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    const bool may_drop = options_.layer < model.num_layers && left < prompt.num_image_tokens(row_breaks_compete());
    if (may_drop && options_.rows == Rows::kQueryText && text_of_example(prompt, prompt.query_example).empty())
      throw Error("attention: rows=query_text, but the query example has no text");
    return {{{Site::kBeforeLayer, options_.layer}, left, kept, may_drop}};
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State*) const override {
    AttentionProbe probe{.layer = point.layer - 1};
    if (options_.rows == Rows::kLast) return {probe};
    probe.rows = AttentionProbe::Rows::kGiven;
    if (options_.rows == Rows::kAll)
      probe.groups.push_back({.rows = at::arange(layout.num_tokens(), layout.image_tokens.options())});
    else if (options_.rows == Rows::kQueryText)
      probe.groups.push_back(
          {.rows = text_tokens_at(layout, text_of_example(*layout.prompt, layout.prompt->query_example))});
    else
      probe.groups = own_text_groups(layout);
    return {probe};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const Blocks images = blocks_within(tokens_per_image(layout, row_breaks_compete()),
                                        kept_per_image(pool_rule(options_.amount), *layout.prompt));
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    return {.kept = keep_best(signals[0], pinned, images), .scores = signals[0]};
  }

 private:
  // One group an image, its text x its tokens, so that the groups' columns are all image tokens in order.
  std::vector<AttentionProbe::Group> own_text_groups(const TokenLayout& layout) const {
    const std::vector<int64_t> sizes = tokens_per_image(layout, row_breaks_compete());
    const std::vector<std::vector<int64_t>> texts = text_of_each_image(*layout.prompt);
    const int64_t n = layout.num_tokens();
    std::vector<AttentionProbe::Group> groups;
    int64_t begin = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      const at::Tensor rows =
          texts[i].empty() ? at::arange(n - 1, n, layout.image_tokens.options()) : text_tokens_at(layout, texts[i]);
      groups.push_back({rows, layout.image_tokens.slice(0, begin, begin + sizes[i])});
      begin += sizes[i];
    }
    return groups;
  }

  AttentionOptions options_;
};

}  // namespace

PolicyPtr make_attention(const AttentionOptions& options) {
  return std::make_shared<Attention>(options);
}

PlannedPolicyPtr attention_from(const OptionReader& reader) {
  AttentionOptions options;
  options.amount = reader.amount();
  if (!reader.text("layer")) throw Error("attention: layer is needed");
  options.layer = static_cast<int>(reader.integer("layer", 0, 1, 1 << 20));
  options.rows = reader.choice("rows", options.rows, kRows);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Attention>(options);
}

}  // namespace espalier
