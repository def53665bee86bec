// SPDX-License-Identifier: Apache-2.0
// SparseVLM: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417),
// as docs/specs/sparsevlm.md reads it; the released v1.5 with fixed lists. Symbols: H_v, H_q -> image tokens and text
// behind the last image at the projector's output, r -> rating, raters -> text with r above its mean, P and p -> the
// probe's mean over heads and raters, k -> num_kept, tau and theta as there, rho -> density, delta -> distance, C ->
// number of clusters. Layers: the paper's pruning layer l runs first, so it is before 0-based layer l+1, ranked by
// attention l. Differences from the released code: equal densities are told apart by the order of candidates and not by
// noise; a stage that has no more than k tokens does nothing; positions are kept (the code renumbers), an average takes
// its centre's; all images compete, each clusters its own, floor(theta·own) + 1 (the code: floor(m/10) + 1 of one
// image); averages stand behind their image. Under a rank rule the raters' rows are read one by one and each stage
// waits for the rank of P, which numbers below sigma_max · max(R, n) · 2^-23 do not raise.
#include "espalier/policies/sparsevlm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cdist.h>
#include <ATen/ops/linalg_svdvals.h>
#include <ATen/ops/matmul.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/group_means.h"
#include "pruning/prompt_text.h"
#include "pruning/selection.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::array kLayersOf32 = {3, 7, 16};
constexpr ValueNames<SparsevlmOptions::Rule, 3> kRules = {{{"fixed", SparsevlmOptions::Rule::kFixed},
                                                           {"rank_lambda", SparsevlmOptions::Rule::kRankLambda},
                                                           {"rank_scale", SparsevlmOptions::Rule::kRankScale}}};

struct SparsevlmState final : PruningPolicy::State {
  std::vector<int> layers;
  at::Tensor raters;  // int64, ordinals into the text behind the last image
};

// Text that the images look like: rows of `text` [t, d] whose mean share of a softmax over the text is above 1/t, all
// of them if none is.
at::Tensor choose_raters(const at::Tensor& images, const at::Tensor& text) {
  const at::Tensor rating = at::matmul(images.to(at::kFloat), text.to(at::kFloat).t()).softmax(1).mean(0);
  const at::Tensor raters = (rating > rating.mean()).nonzero().squeeze(1);  // their number depends on the data: waits
  return raters.size(0) > 0 ? raters : at::arange(text.size(0), raters.options());
}

struct Clusters {
  at::Tensor means;    // [c, d]
  at::Tensor centres;  // int64 [c] rows of the candidates
};

// Of P [R, n]. Waits for the device.
int64_t rank_of(const at::Tensor& p) {
  if (p.numel() == 0) return 0;
  const at::Tensor sigma = at::linalg_svdvals(p.to(at::kDouble));
  const double tolerance = static_cast<double>(std::max(p.size(0), p.size(1))) * std::ldexp(1.0, -23);
  return (sigma > sigma.max() * tolerance).sum().item<int64_t>();
}

// Density peaks: centres are dense and far from everything denser; every row joins the nearest.
Clusters cluster(const at::Tensor& x, int64_t number) {
  const int64_t m = x.size(0);
  // Mode 2: differences, not products, which lose small distances.
  const at::Tensor d = at::cdist(x, x, 2.0, 2) / std::sqrt(static_cast<double>(x.size(1)));
  const at::Tensor nearest = std::get<0>(d.square().topk(number, 1, /*largest=*/false));
  const at::Tensor density = (-nearest.mean(1)).exp(), order = at::arange(m, x.options().dtype(at::kLong));
  const at::Tensor mine = density.unsqueeze(1), other = density.unsqueeze(0);
  const at::Tensor is_denser = (other > mine) | ((other == mine) & (order.unsqueeze(0) < order.unsqueeze(1)));
  const at::Tensor distance = d.masked_fill(is_denser.logical_not(), kInfinity).amin(1).minimum(d.max());
  const at::Tensor centres = (density * distance).argsort(/*stable=*/true, 0, /*descending=*/true).slice(0, 0, number);
  at::Tensor to_centre = d.index_select(1, centres);
  // A centre owns itself, though a copy of it may be an earlier centre.
  to_centre = to_centre.masked_fill(order.unsqueeze(1) == centres.unsqueeze(0), -1);
  const at::Tensor owner = to_centre.argsort(/*stable=*/true, 1).select(1, 0);
  return {group_means(x, owner, number), centres};
}

class Sparsevlm final : public PlannedPolicy {
 public:
  explicit Sparsevlm(const SparsevlmOptions& options)
      : PlannedPolicy("sparsevlm", options.common, options.row_breaks_compete), options_(options) {
    if (is_fixed())
      amounts_ = amounts_of_stages("sparsevlm", options.amounts,
                                   options.layers.empty() ? kLayersOf32.size() : options.layers.size());
    else if (options.amounts != StageAmounts{})
      throw Error("sparsevlm: a rank rule decides how many tokens stay; it takes no keep_ratio or num_kept");
    for (const auto& [name, f] :
         {std::pair("tau", options.tau), std::pair("theta", options.theta), std::pair("lambda", options.lambda)})
      if (f.den <= 0 || f.num < 0 || f.num > f.den)
        throw Error("sparsevlm: " + std::string(name) + "=" + to_string(f) + " is not from 0 to 1");
  }

  std::string spec() const override {
    const SparsevlmOptions defaults;
    SpecWriter writer("sparsevlm");
    write_stage_amounts(writer, options_.amounts, defaults.amounts);
    write_layers(writer, options_.layers);
    return writer.choice("rule", options_.rule, defaults.rule, kRules)
        .add("lambda", options_.lambda, defaults.lambda)
        .add("scale", options_.scale, defaults.scale)
        .add("bias", options_.bias, defaults.bias)
        .add("recycle", options_.recycle, defaults.recycle)
        .add("tau", options_.tau, defaults.tau)
        .add("theta", options_.theta, defaults.theta)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override;
  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<SparsevlmState>();
    state->layers = layers_of(model);
    return state;
  }
  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State* state) const override;
  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override;

 private:
  NewTokens recycled(const TokenLayout& layout, const at::Tensor& hidden, const at::Tensor& scores,
                     const at::Tensor& kept) const;

  std::vector<int> layers_of(const ModelFacts& model) const {
    return options_.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : options_.layers;
  }
  bool is_fixed() const { return options_.rule == SparsevlmOptions::Rule::kFixed; }
  int64_t num_kept(size_t stage, const PromptLayout& prompt) const {
    return kept_of_request(pool_rule(amounts_[stage]), prompt);
  }
  // The same by rank, of the m tokens that are there. p [R, m].
  int64_t num_kept_by_rank(const at::Tensor& p, const PromptLayout& prompt) const {
    const int64_t rank = rank_of(p), m = p.size(1);
    int64_t kept = m;
    if (options_.rule == SparsevlmOptions::Rule::kRankLambda)
      kept -= rounded_share(options_.lambda, m - rank, Rounding::kFloor);
    else if (rank < m)
      kept = std::clamp(
          static_cast<int64_t>(std::floor(options_.scale * static_cast<double>(rank) + options_.bias + 1e-9)),
          int64_t{0}, m);
    const auto stay = protected_per_image(prompt, row_breaks_compete(), common().min_per_image);
    return std::max(kept, std::min(m, std::accumulate(stay.begin(), stay.end(), int64_t{0})));
  }

  SparsevlmOptions options_;
  std::vector<Amount> amounts_;  // one a stage
};

std::vector<PlannedPoint> Sparsevlm::plan(const ModelFacts& model, const PromptLayout& prompt) const {
  const std::vector<int> layers = layers_of(model);
  check_stage_layers("sparsevlm", layers, 1, model.num_layers);
  int64_t before = prompt.num_image_tokens(row_breaks_compete());
  std::vector<PlannedPoint> points = {{{Site::kProjectorOutput}, {}, {}, false}};  // reads the raters, drops nothing
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    PlannedPoint& point = points.emplace_back();
    point.point = {Site::kBeforeLayer, layers[stage]};
    if (!is_fixed()) {
      point.may_drop = layers[stage] < model.num_layers;
      points[0].may_drop |= point.may_drop;
      continue;
    }
    const int64_t left = num_kept(stage, prompt);
    const bool has_clusters = options_.recycle && points[0].may_drop;  // of earlier stages
    point.may_drop = layers[stage] < model.num_layers && (left < before || has_clusters);
    if (!options_.recycle) point.tokens_left = left;
    points[0].may_drop |= point.may_drop;
    before = left;
  }
  if (points[0].may_drop && text_behind_last_image(prompt).empty())
    throw Error("sparsevlm: no text stands behind the last image to rate its tokens");
  return points;
}

std::vector<Signal> Sparsevlm::needs(const ActPoint& point, const TokenLayout& layout, const State* state) const {
  if (point.site == Site::kProjectorOutput) return {Tap{Tap::What::kHidden}};
  const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
  AttentionProbe probe{.layer = point.layer - 1, .rows = AttentionProbe::Rows::kGiven, .reduce_rows = is_fixed()};
  probe.groups.push_back({.rows = text.index_select(0, dynamic_cast<const SparsevlmState&>(*state).raters)});
  if (!options_.recycle) return {probe};
  return {probe, Tap{Tap::What::kHidden}};
}

// The averages of the clusters among the best of what leaves, image by image.
NewTokens Sparsevlm::recycled(const TokenLayout& layout, const at::Tensor& hidden, const at::Tensor& scores,
                              const at::Tensor& kept) const {
  const int64_t left = scores.size(0) - kept.size(0);
  const int64_t m = std::min(left, rounded_share(options_.tau, left, Rounding::kFloor) + 1);
  const at::Tensor candidates =
      scores.index_fill(0, kept, -kInfinity).argsort(/*stable=*/true, 0, /*descending=*/true).slice(0, 0, m);
  const at::Tensor tokens = layout.image_tokens.index_select(0, candidates);
  const auto num_images = static_cast<int64_t>(layout.prompt->images.size());
  const at::Tensor image = layout.image.index_select(0, tokens);
  std::vector<at::Tensor> means, centres;
  for (int64_t i = 0; i < num_images; ++i) {  // with several images, each one's number is waited for
    const at::Tensor own = num_images == 1 ? at::arange(m, candidates.options()) : (image == i).nonzero().squeeze(1);
    if (own.size(0) == 0) continue;
    const int64_t number = std::min(own.size(0), rounded_share(options_.theta, own.size(0), Rounding::kFloor) + 1);
    const Clusters found = cluster(hidden.index_select(0, tokens.index_select(0, own)).to(at::kFloat), number);
    means.push_back(found.means);
    centres.push_back(candidates.index_select(0, own.index_select(0, found.centres)));
  }
  const at::Tensor places = at::cat(centres);
  return {NewTokens::Where::kBehindImage, at::cat(means).to(hidden.dtype()), places, places};
}

Verdict Sparsevlm::decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                          State* state) const {
  auto& mine = dynamic_cast<SparsevlmState&>(*state);
  const int64_t m = layout.num_image_tokens();
  const at::Tensor everything = at::arange(m, layout.image_tokens.options());
  if (point.site == Site::kProjectorOutput) {
    const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
    mine.raters = choose_raters(signals[0].index_select(0, layout.image_tokens), signals[0].index_select(0, text));
    return {.kept = everything};
  }
  const auto stage = std::find(mine.layers.begin(), mine.layers.end(), point.layer) - mine.layers.begin();
  const at::Tensor scores = is_fixed() ? signals[0] : signals[0].mean(0);
  const int64_t k =
      is_fixed() ? num_kept(static_cast<size_t>(stage), *layout.prompt) : num_kept_by_rank(signals[0], *layout.prompt);
  if (k >= m) return {.kept = everything, .scores = scores};
  std::vector<int64_t> stay, sizes;
  if (common().min_per_image > 0) {
    stay = protected_per_image(*layout.prompt, row_breaks_compete(), common().min_per_image);
    sizes = tokens_per_image(layout, row_breaks_compete());
  }
  const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens);
  Verdict verdict{.kept = keep_best(scores, pinned, {{m}, {k}}, stay, sizes), .scores = scores};
  if (options_.recycle) verdict.added.push_back(recycled(layout, signals[1], scores, verdict.kept));
  return verdict;
}

}  // namespace

PolicyPtr make_sparsevlm(const SparsevlmOptions& options) {
  return std::make_shared<Sparsevlm>(options);
}

PlannedPolicyPtr sparsevlm_from(const OptionReader& reader) {
  SparsevlmOptions options;
  options.layers = read_layers(reader);
  options.amounts = read_stage_amounts(reader, options.amounts);
  options.rule = reader.choice("rule", options.rule, kRules);
  options.lambda = reader.fraction("lambda", options.lambda);
  options.scale = reader.number("scale", options.scale);
  options.bias = reader.number("bias", options.bias);
  options.recycle = reader.boolean("recycle", options.recycle);
  options.tau = reader.fraction("tau", options.tau);
  options.theta = reader.fraction("theta", options.theta);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Sparsevlm>(options);
}

}  // namespace espalier
