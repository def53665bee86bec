// SPDX-License-Identifier: Apache-2.0
// SparseVLM: "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference" (arXiv 2410.04417),
// as docs/specs/sparsevlm.md reads it; the released v1.5 with fixed lists.
//   H_v, H_q    image tokens and text behind the last image at the projector's output
//   r           rating
//   raters      text with r above its mean
//   P, p        the probe's mean over heads and raters
//   k           num_kept
//   tau, theta  as there
//   rho, delta  density, distance
//   C           number of clusters
// Layers: the paper's pruning layer l runs first, so it is before 0-based layer l+1, ranked by attention l. Differences
// from the released code:
//   - equal densities are told apart by the order of candidates and not by noise;
//   - a stage that has no more than k tokens does nothing;
//   - positions are kept (the code renumbers), an average takes its centre's;
//   - all images compete, each clusters its own, floor(theta·own) + 1 (the code: floor(m/10) + 1 of one image);
//   - averages stand behind their image.
// Under a rank rule the raters' rows are read one by one and each stage waits for the rank of P, which numbers below
// sigma_max · max(R, n) · 2^-23 do not raise.
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
#include <memory>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/group_means.h"
#include "pruning/prompt_text.h"
#include "pruning/stages.h"

namespace espalier {

namespace {

using O = SparsevlmOptions;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::array kLayersOf32 = {3, 7, 16};

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

bool is_fixed(const O& o) {
  return o.rule == O::Rule::kFixed;
}

std::vector<Amount> amounts_of(const O& o) {
  return amounts_of_stages("sparsevlm", o.amounts, o.layers.empty() ? kLayersOf32.size() : o.layers.size());
}

// What stays of the m tokens that are there, by rank. p [R, m].
int64_t num_kept_by_rank(const O& o, const at::Tensor& p) {
  const int64_t rank = rank_of(p), m = p.size(1);
  if (o.rule == O::Rule::kRankLambda) return m - rounded_share(o.lambda, m - rank, Rounding::kFloor);
  if (rank >= m) return m;
  return std::clamp(static_cast<int64_t>(std::floor(o.scale * static_cast<double>(rank) + o.bias + 1e-9)), int64_t{0},
                    m);
}

// The averages of the clusters among the best of what leaves, image by image.
NewTokens recycled(const O& o, const TokenLayout& layout, const at::Tensor& hidden, const at::Tensor& scores,
                   const at::Tensor& kept) {
  const int64_t left = scores.size(0) - kept.size(0);
  const int64_t m = std::min(left, rounded_share(o.tau, left, Rounding::kFloor) + 1);
  const at::Tensor candidates =
      scores.index_fill(0, kept, -kInfinity).argsort(/*stable=*/true, 0, /*descending=*/true).slice(0, 0, m);
  const at::Tensor tokens = layout.image_tokens.index_select(0, candidates);
  const auto num_images = static_cast<int64_t>(layout.prompt->images.size());
  const at::Tensor image = layout.image.index_select(0, tokens);
  std::vector<at::Tensor> means, centres;
  for (int64_t i = 0; i < num_images; ++i) {  // with several images, each one's number is waited for
    const at::Tensor own = num_images == 1 ? at::arange(m, candidates.options()) : (image == i).nonzero().squeeze(1);
    if (own.size(0) == 0) continue;
    const int64_t number = std::min(own.size(0), rounded_share(o.theta, own.size(0), Rounding::kFloor) + 1);
    const Clusters found = cluster(hidden.index_select(0, tokens.index_select(0, own)).to(at::kFloat), number);
    means.push_back(found.means);
    centres.push_back(candidates.index_select(0, own.index_select(0, found.centres)));
  }
  const at::Tensor places = at::cat(centres);
  return {NewTokens::Where::kBehindImage, at::cat(means).to(hidden.dtype()), places, places};
}

// Which of the text behind the last image rates: int64 ordinals into it. Filled in by the first step.
using Raters = std::shared_ptr<at::Tensor>;

Step read_raters(const Raters& raters) {
  return {.at = {Site::kProjectorOutput},
          .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
          .decide =
              [raters](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
                *raters =
                    choose_raters(signals[0].index_select(0, layout.image_tokens), signals[0].index_select(0, text));
                return Verdict();
              },
          .only_reads = true};
}

std::vector<Signal> needs(const O& o, int layer, const at::Tensor& raters, const TokenLayout& layout) {
  const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
  AttentionProbe probe{.layer = layer - 1, .rows = AttentionProbe::Rows::kGiven, .reduce_rows = is_fixed(o)};
  probe.groups.push_back({.rows = text.index_select(0, raters)});
  if (!o.recycle) return {probe};
  return {probe, Tap{Tap::What::kHidden}};
}

Verdict rate(const O& o, const TokenLayout& layout, std::span<const at::Tensor> signals) {
  Verdict verdict{.scores = is_fixed(o) ? signals[0] : signals[0].mean(0)};
  if (!is_fixed(o)) verdict.num_kept = {num_kept_by_rank(o, signals[0])};
  if (o.recycle)
    verdict.choose = [o, layout, scores = verdict.scores, hidden = signals[1]](const Pools& request) {
      Choice choice{.kept = best_of(request, scores), .added = {}};
      if (choice.kept.size(0) < scores.size(0)) choice.added = {recycled(o, layout, hidden, scores, choice.kept)};
      return choice;
    };
  return verdict;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const std::vector<int> layers = o.layers.empty() ? scaled_layers(kLayersOf32, model.num_layers) : o.layers;
  check_stage_layers("sparsevlm", layers, 1, model.num_layers);
  if (text_behind_last_image(prompt).empty())
    throw Error("sparsevlm: no text stands after the last image to rate its tokens");
  const std::vector<Amount> amounts = is_fixed(o) ? amounts_of(o) : std::vector<Amount>(layers.size());
  const auto raters = std::make_shared<at::Tensor>();
  std::vector<Step> steps = {read_raters(raters)};
  for (size_t stage = 0; stage < layers.size(); ++stage) {
    const int layer = layers[stage];
    if (layer == model.num_layers) continue;
    steps.push_back(
        {.at = {Site::kBeforeLayer, layer},
         .budget = {.amount = amounts[stage], .is_adaptive = !is_fixed(o), .is_interim = o.recycle},
         .needs = [o, layer, raters](const TokenLayout& layout) { return needs(o, layer, *raters, layout); },
         .decide = [o](const TokenLayout& layout,
                       std::span<const at::Tensor> signals) { return rate(o, layout, signals); },
         .is_nested = !o.recycle && is_fixed(o),
         .adds_on_top = o.recycle});
  }
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "sparsevlm",
      .options =
          {stage_ratios(&O::amounts, "part of all image tokens that stays, one for each layer; r: r, r/2, r/4, …"),
           stage_numbers(&O::amounts),
           {"layers", &O::layers, "acts before these layers; 3:7:16 of 32, in proportion to the depth"},
           {"rule",
            &O::rule,
            {{"fixed", O::Rule::kFixed}, {"rank_lambda", O::Rule::kRankLambda}, {"rank_scale", O::Rule::kRankScale}},
            "rank_lambda, rank_scale: the rank of the raters' attention decides, without amount"},
           {"lambda", &O::lambda, "rank_lambda: part of the tokens beyond the rank that leaves", kShare},
           {"scale", &O::scale, "rank_scale: tokens that stay for each of the rank"},
           {"bias", &O::bias, "rank_scale: and these"},
           {"recycle", &O::recycle, "part of what leaves comes back as averages of clusters, beside the amount"},
           {"tau", &O::tau, "part of what leaves that is clustered", kShare},
           {"theta", &O::theta, "clusters for each of these", kShare},
           row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = [](const O& o) {
        if (is_fixed(o))
          amounts_of(o);
        else if (o.amounts != StageAmounts{})
          throw Error("sparsevlm: a rank rule decides how many tokens stay; it takes no keep_ratio or num_kept");
      }};
  return method;
}

}  // namespace

PolicyPtr make_sparsevlm(const SparsevlmOptions& options) {
  return make(method(), options);
}

PolicyRow sparsevlm_row() {
  return row(method(), {.paper = "arXiv 2410.04417",
                        .summary = "tokens that telling words look at least leave in stages, some as averages",
                        .sites = {Site::kProjectorOutput, Site::kBeforeLayer},
                        .needs = "embeddings, attention of chosen text rows and states of a few layers",
                        .refusal = needs_layers<8>,
                        .examples = {{"sparsevlm:keep_ratio=1/2,recycle=false"},
                                     {"sparsevlm:rule=rank_lambda,recycle=false"},
                                     {"sparsevlm:rule=rank_scale,recycle=false,row_breaks=follow"},
                                     {"sparsevlm:num_kept=24:20:16", /*keeps_tokens=*/false}}});
}

}  // namespace espalier
