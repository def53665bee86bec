// SPDX-License-Identifier: Apache-2.0
// FastV: "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764), as docs/specs/fastv.md reads it.
// Symbols: K -> layer (0-based: layers 0 … K-1 see everything, the ranking is the attention of layer K-1), R -> 1 -
// keep_ratio, N -> the pool, V -> image tokens, phi_attn -> the probe's mean over query heads. Differences from the
// released code: chosen once, at prefill (the original chooses again in every step); all images of a request compete,
// found by the layout and not by a fixed span; positions are kept as in all in-place variants. K = 0, which the paper
// fills with random dropping, is the policy `random`.
#include "espalier/policies/fastv.h"

#include <ATen/ops/arange.h>

#include <algorithm>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

constexpr ValueNames<FastvOptions::Rows, 2> kRows = {
    {{"last", FastvOptions::Rows::kLast}, {"all", FastvOptions::Rows::kAll}}};
constexpr ValueNames<FastvOptions::Pool, 2> kPools = {
    {{"request", FastvOptions::Pool::kRequest}, {"image", FastvOptions::Pool::kImage}}};

class Fastv final : public PlannedPolicy {
 public:
  explicit Fastv(const FastvOptions& options)
      : PlannedPolicy("fastv", options.common, options.row_breaks_compete), options_(options) {
    check_amount("fastv", options.amount);
    if (options.layer < 1)
      throw Error("fastv: layer=" + std::to_string(options.layer) +
                  " is below 1; before any layer there is no attention");
  }

  std::string spec() const override {
    const FastvOptions defaults;
    return SpecWriter("fastv")
        .amount(options_.amount)
        .add("layer", int64_t{options_.layer}, defaults.layer)
        .choice("rows", options_.rows, defaults.rows, kRows)
        .choice("pool", options_.pool, defaults.pool, kPools)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (options_.layer > model.num_layers)
      throw Error("fastv: layer=" + std::to_string(options_.layer) + ", but the model has " +
                  std::to_string(model.num_layers) + " layers");
    const std::vector<int64_t> kept = num_kept(prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    const bool may_drop = options_.layer < model.num_layers && left < prompt.num_image_tokens(row_breaks_compete());
    return {{{Site::kBeforeLayer, options_.layer},
             left,
             options_.pool == FastvOptions::Pool::kImage ? kept : std::vector<int64_t>{},
             may_drop}};
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State*) const override {
    AttentionProbe probe{.layer = point.layer - 1};
    if (options_.rows == FastvOptions::Rows::kAll) {
      probe.rows = AttentionProbe::Rows::kGiven;
      probe.groups.push_back({.rows = at::arange(layout.num_tokens(), layout.image_tokens.options())});
    }
    return {probe};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override {
    const bool is_per_image = options_.pool == FastvOptions::Pool::kImage;
    const bool has_floor = common().min_per_image > 0;
    std::vector<int64_t> image_sizes, stay;
    if (is_per_image || has_floor) image_sizes = tokens_per_image(layout, row_breaks_compete());
    if (has_floor) stay = protected_per_image(*layout.prompt, row_breaks_compete(), common().min_per_image);
    const Blocks pools = blocks_within(is_per_image ? image_sizes : std::vector<int64_t>{layout.num_image_tokens()},
                                       num_kept(*layout.prompt));
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
    return {.kept = keep_best(signals[0], pinned, pools, stay, image_sizes), .scores = signals[0]};
  }

 private:
  // One number a pool.
  std::vector<int64_t> num_kept(const PromptLayout& prompt) const {
    const PoolRule rule = pool_rule(options_.amount);
    if (options_.pool == FastvOptions::Pool::kImage) return kept_per_image(rule, prompt);
    return {kept_of_request(rule, prompt)};
  }

  FastvOptions options_;
};

}  // namespace

PolicyPtr make_fastv(const FastvOptions& options) {
  return std::make_shared<Fastv>(options);
}

PlannedPolicyPtr fastv_from(const OptionReader& reader) {
  FastvOptions options;
  options.amount = reader.amount();
  options.layer = static_cast<int>(reader.integer("layer", options.layer, 1, 1 << 20));
  options.rows = reader.choice("rows", options.rows, kRows);
  options.pool = reader.choice("pool", options.pool, kPools);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Fastv>(options);
}

}  // namespace espalier
