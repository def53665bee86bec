// SPDX-License-Identifier: Apache-2.0
// CATP: "Contextually Adaptive Token Pruning" (arXiv 2508.07871), as docs/specs/catp.md reads it; A1 … A22 are that
// page's open points. There is no released code.
//   R            1 - keep_ratio
//   X_i, T_i     image tokens of image i in `hidden` at the projector's output; text of the image
//   vbar_i       text mean
//   simhat       similarity
//   F_align      modular
//   dA           AttentionGrowth
//   C            context tokens
//   vq, vc       mean of the query pool, of the context pool
//   S_ctx, S_qry scores of the context and of the query step
// Layers: the paper counts from 1 and cuts after layer K, which is before 0-based layer k = K; its A_K and A_{K-1} are
// the attention of layers k-1 and k-2, its h^K is hidden.k. The query is cut before layer k+1. Readings of our own:
//   - at least one token of each group stays;
//   - an image outside every example (in the system prompt) takes part in stage 1 only;
//   - pinned tokens are the first picks of stage 1;
//   - with delta_norm=none, dA being 1e-4 … 1e-2 where 0.6·cos spans tenths, the cosine decides nearly all (A13).
#include "espalier/policies/catp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/scatter_reduce.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/catp_budget.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = CatpOptions;

constexpr double kTinyRange = 1e-12;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

int default_k(int num_layers) {
  if (num_layers >= 40) return 10;
  if (num_layers >= 16) return 6;
  return std::max(2, static_cast<int>(rounded_share({3, 16}, num_layers, Rounding::kNearestEven)));
}

// ---- stage 1 ----

// Mean embedding of each image's text, float32 [images, d]; zero where there is none.
at::Tensor text_means(const at::Tensor& hidden, const TokenLayout& layout,
                      const std::vector<std::vector<int64_t>>& texts) {
  std::vector<int64_t> ordinals, image, divisor;
  for (size_t i = 0; i < texts.size(); ++i) {
    ordinals.insert(ordinals.end(), texts[i].begin(), texts[i].end());
    image.insert(image.end(), texts[i].size(), static_cast<int64_t>(i));
    divisor.push_back(std::max<int64_t>(1, std::ssize(texts[i])));
  }
  const at::Tensor rows = hidden.index_select(0, text_tokens_at(layout, ordinals)).to(at::kFloat);
  const at::Tensor owner = int64_tensor(image).to(rows.device());
  const at::Tensor belongs = owner.unsqueeze(0) == at::arange(std::ssize(texts), owner.options()).unsqueeze(1);
  return at::matmul(belongs.to(at::kFloat), rows) / int64_tensor(divisor).to(rows.device()).unsqueeze(1);
}

// The similarity in [0, 1] of a cosine; minmax over the image's own values. cosine float32 [m], image int64 [m].
at::Tensor rescaled(const at::Tensor& cosine, const at::Tensor& image, int64_t num_images, ops::Similarity similarity) {
  switch (similarity) {
    case ops::Similarity::kAffine:
      return (cosine + 1).mul(0.5);
    case ops::Similarity::kClamp:
      return cosine.clamp_min(0);
    case ops::Similarity::kMinmax:
      break;
  }
  const auto extreme = [&](float start, c10::string_view reduce) {
    return at::scatter_reduce(at::full({num_images}, start, cosine.options()), 0, image, cosine, reduce)
        .index_select(0, image);
  };
  const at::Tensor low = extreme(kInfinity, "amin"), range = extreme(-kInfinity, "amax") - low;
  return at::where(range < kTinyRange, at::full_like(cosine, 0.5), (cosine - low) / range.clamp_min(kTinyRange));
}

// ---- stage 2 ----

at::Tensor is_context(const at::Tensor& example, int query_example) {
  return (example >= 0) & (example != query_example);
}

at::Tensor mean_of_rows(const at::Tensor& hidden, const at::Tensor& mask) {
  const at::Tensor weight = mask.to(at::kFloat);
  return at::matmul(weight.unsqueeze(0), hidden.to(at::kFloat)) / weight.sum().clamp_min(1);  // [1, d]
}

// dA (or attention) over the tokens of `judged`; float32 [m].
at::Tensor normalised(const at::Tensor& growth, const at::Tensor& judged, O::DeltaNorm norm) {
  const at::Tensor largest = growth.masked_fill(judged.logical_not(), -kInfinity).max();
  switch (norm) {
    case O::DeltaNorm::kNone:
      return growth;
    case O::DeltaNorm::kMax:
      return growth / largest.clamp_min(kTinyRange);
    case O::DeltaNorm::kSum:
      return growth / growth.masked_fill(judged.logical_not(), 0).sum().clamp_min(kTinyRange);
    case O::DeltaNorm::kMinmax:
      break;
  }
  const at::Tensor low = growth.masked_fill(judged.logical_not(), kInfinity).min(), range = largest - low;
  return at::where(range < kTinyRange, at::full_like(growth, 0.5), (growth - low) / range.clamp_min(kTinyRange));
}

// lambda1 · F_align as a number for each image token, float32 [m]; 0 for images without text.
at::Tensor alignment(const O& o, const at::Tensor& hidden, const TokenLayout& layout) {
  const auto texts = text_of_each_image(*layout.prompt, layout.begin);
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
  const at::Tensor cosines =
      ops::cosine_score(hidden, text_means(hidden, layout, texts), layout.image_tokens);  // [images, m]
  const at::Tensor own = cosines.gather(0, image.unsqueeze(0)).squeeze(0);
  at::Tensor modular = rescaled(own, image, cosines.size(0), o.similarity).mul(o.lambda1);
  // F_div / S + F_align has the maximum where F_div + S · F_align has it.
  if (o.scale == O::Scale::kDivMean)
    modular = modular * int64_tensor(layout.tokens_per_image()).to(hidden.device()).index_select(0, image);
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(std::ssize(text));
  const at::Tensor text_tokens = int64_tensor(lengths).to(hidden.device()).index_select(0, image);
  return modular.masked_fill(text_tokens == 0, 0.0);
}

Step stage1(const O& o, const CatpBudget& budget, bool is_interim) {
  Step step{.at = {Site::kProjectorOutput},
            // A number stands for its share of all image tokens.
            .scope = o.amount.num_kept ? Scope::kRequest : Scope::kExample,
            .budget = {.pool = Budget::Pool::kImage, .counts = budget.stage1, .is_interim = is_interim},
            .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; }};
  step.decide = [o](const TokenLayout& layout, std::span<const at::Tensor> signals) {
    const at::Tensor features = ops::gather_rows(signals[0], layout.image_tokens);
    at::Tensor modular;
    if (o.lambda1 > 0) modular = alignment(o, signals[0], layout);
    return Verdict{.choose = [features, modular, similarity = o.similarity](const Pools& images) {
      return Choice{ops::facility_location_greedy(
          features, int64_tensor(images.begin), int64_tensor(images.num_kept), similarity, 1.0,
          modular.defined() ? ops::OptionalTensor(modular) : std::nullopt, images.always)};
    }};
  };
  return step;
}

// Tokens whose mean state is vq, int64 [p].
at::Tensor query_pool(const O& o, const CatpBudget& budget, const TokenLayout& layout) {
  const PromptLayout& prompt = *layout.prompt;
  const int64_t n = layout.num_tokens();
  if (o.query_pool == O::QueryPool::kLast) return at::arange(n - 1, n, layout.image_tokens.options());
  const at::Tensor pool = layout.example == prompt.query_example;
  int64_t count = 0;
  bool count_is_known = true;
  for (const Segment& s : prompt.segments) {
    if (s.kind == Segment::Kind::kText && s.example == prompt.query_example) count += s.end - s.begin;
    // How many row breaks followed their rows is not known here.
    if (s.kind == Segment::Kind::kRowBreak && !layout.row_breaks_compete) count_is_known = false;
  }
  if (o.query_pool == O::QueryPool::kText)
    return indices_of(pool & (layout.kind == static_cast<int64_t>(Segment::Kind::kText)), count);
  const std::vector<int64_t> left = layout.tokens_per_image();
  for (const int64_t i : budget.query_images) count += left[static_cast<size_t>(i)];
  return indices_of(pool, count_is_known ? std::optional(count) : std::nullopt);
}

std::vector<Signal> context_needs(const O& o, int k, const CatpBudget& budget, const TokenLayout& layout) {
  if (o.importance == O::Importance::kAttention) {
    std::vector<Signal> needs = {AttentionProbe{.layer = k - 1}};
    if (o.lambda2 > 0) needs.emplace_back(Tap{Tap::What::kHidden});
    return needs;
  }
  AttentionGrowth growth{.lower = k - 2, .upper = k - 1, .relu_per_head = o.relu_per_head};
  if (o.lambda2 == 0) return {growth};
  if (o.delta_norm != O::DeltaNorm::kNone) return {growth, Tap{Tap::What::kHidden}};
  growth.pool = query_pool(o, budget, layout);
  // lambda2 · (1 + c) / 2 is lambda2 / 2 · c and a constant.
  growth.cosine_weight = o.similarity2 == O::StageTwoSimilarity::kAffine ? o.lambda2 / 2 : o.lambda2;
  return {growth};
}

Verdict rank_context(const O& o, const CatpBudget& budget, const TokenLayout& layout,
                     std::span<const at::Tensor> signals) {
  const at::Tensor judged =
      is_context(layout.example.index_select(0, layout.image_tokens), layout.prompt->query_example);
  const bool is_affine = o.similarity2 == O::StageTwoSimilarity::kAffine;
  at::Tensor scores = normalised(signals[0], judged, o.delta_norm);
  if (signals.size() > 1) {
    const at::Tensor mean = signals[1].index_select(0, query_pool(o, budget, layout)).to(at::kFloat).mean(0, true);
    const at::Tensor cosine = ops::cosine_score(signals[1], mean, layout.image_tokens)[0];
    scores = scores + o.lambda2 * (is_affine ? (cosine + 1) / 2 : cosine);
  } else if (is_affine) {
    scores = scores + o.lambda2 / 2;
  }
  return {.scores = scores};
}

// Tokens whose mean state is vc, bool [n].
at::Tensor context_pool(const O& o, const CatpBudget& budget, const TokenLayout& layout) {
  if (budget.context_images.empty())
    return (layout.example >= 0) & (layout.kind == static_cast<int64_t>(Segment::Kind::kText));
  const at::Tensor context = is_context(layout.example, layout.prompt->query_example);
  if (o.context_pool == O::ContextPool::kAll) return context;
  at::Tensor is_image_token = at::full_like(context, false);
  is_image_token.index_fill_(0, layout.image_tokens, true);
  return context & is_image_token;
}

Verdict rank_query(const O& o, const CatpBudget& budget, const TokenLayout& layout, const at::Tensor& hidden) {
  const at::Tensor mean = mean_of_rows(hidden, context_pool(o, budget, layout));
  const at::Tensor cosine = ops::cosine_score(hidden, mean, layout.image_tokens)[0];
  return {.scores = o.similarity2 == O::StageTwoSimilarity::kAffine ? (cosine + 1) / 2 : cosine};
}

// The examples' images before layer k, and the query's before layer k + 1.
std::vector<Step> stage2(const O& o, int k, const std::shared_ptr<const CatpBudget>& budget) {
  Step context{
      .at = {Site::kBeforeLayer, k},
      .budget = {.counts = {budget->context}, .images = budget->context_images, .is_interim = true},
      .needs = [=](const TokenLayout& layout) { return context_needs(o, k, *budget, layout); },
      .decide = [=](const TokenLayout& layout,
                    std::span<const at::Tensor> signals) { return rank_context(o, *budget, layout, signals); }};
  if (o.ranking == O::Ranking::kPerImage) {
    context.budget.pool = Budget::Pool::kImage;
    context.budget.counts = budget->context_per_image;
  }
  std::vector<Step> steps;
  if (!budget->context_images.empty()) steps.push_back(std::move(context));
  if (!budget->can_compare_query || budget->query_images.empty()) return steps;
  steps.push_back(
      {.at = {Site::kBeforeLayer, k + 1},
       .budget = {.counts = {budget->query}, .images = budget->query_images},
       .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; },
       .decide = [=](const TokenLayout& layout,
                     std::span<const at::Tensor> signals) { return rank_query(o, *budget, layout, signals[0]); }});
  return steps;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int k = o.k.value_or(default_k(model.num_layers));
  const bool has_stage2 = o.stage1_share.num < o.stage1_share.den;
  if ((has_stage2 || o.k) && (k < 2 || k > model.num_layers - 2))
    throw Error("catp: k=" + std::to_string(k) + " is not from 2 to " + std::to_string(model.num_layers - 2) +
                ", as a model of " + std::to_string(model.num_layers) + " layers needs");
  const auto budget = std::make_shared<const CatpBudget>(catp_budget(o, prompt));
  if (budget->prunes_context && o.lambda2 > 0 && o.query_pool == O::QueryPool::kText &&
      text_of_example(prompt, prompt.query_example).empty())
    throw Error("catp: query_pool=text, but the query sample has no text");
  std::vector<Step> steps;
  if (o.stage1_share.num > 0) steps.push_back(stage1(o, *budget, has_stage2));
  if (has_stage2)
    for (Step& step : stage2(o, k, budget)) steps.push_back(std::move(step));
  return steps;
}

const Method<O>& method() {
  using Similarity = ops::Similarity;
  static const Method<O> method =
      {.name = "catp",
       .options =
           {keep_ratio(&O::amount),
            num_kept(&O::amount, "of all image tokens of the request; this or keep_ratio"),
            {"k", &O::k,
             "the paper's K: examples are cut before layer k, the query before k + 1; by the depth 10, 6 or about 3/16 "
             "of it",
             at_least(2)},
            {"lambda1", &O::lambda1, "stage 1: weight of the alignment with the image's text", at_least(0)},
            {"lambda2", &O::lambda2, "stage 2: weight of the cosine with the query sample", at_least(0)},
            {"stage1_share", &O::stage1_share,
             "part of what is removed that stage 1 removes; 1: stage 1 alone, 0: stage 2 alone", kShare},
            {"similarity",
             &O::similarity,
             {{"affine", Similarity::kAffine}, {"clamp", Similarity::kClamp}, {"minmax", Similarity::kMinmax}},
             "how stage 1 maps a cosine to 0 … 1: affine, clamp, minmax"},
            {"scale",
             &O::scale,
             {{"none", O::Scale::kNone}, {"div_mean", O::Scale::kDivMean}},
             "div_mean: coverage is divided by the image's number of tokens"},
            {"query_pool",
             &O::query_pool,
             {{"all", O::QueryPool::kAll}, {"text", O::QueryPool::kText}, {"last", O::QueryPool::kLast}},
             "tokens of the query sample whose mean state counts: all, text, last"},
            {"context_pool",
             &O::context_pool,
             {{"all", O::ContextPool::kAll}, {"image", O::ContextPool::kImage}},
             "tokens of the examples whose mean state counts: all, image"},
            {"importance",
             &O::importance,
             {{"growth", O::Importance::kGrowth}, {"attention", O::Importance::kAttention}},
             "of the examples' tokens: growth, or attention in layer k - 1 as it is"},
            {"relu",
             &O::relu_per_head,
             {{"after_mean", false}, {"per_head", true}},
             "per_head: attention growth is clipped in each head"},
            {"delta_norm",
             &O::delta_norm,
             {{"none", O::DeltaNorm::kNone},
              {"max", O::DeltaNorm::kMax},
              {"sum", O::DeltaNorm::kSum},
              {"minmax", O::DeltaNorm::kMinmax}},
             "attention growth over the examples' tokens divided: none, max, sum, minmax"},
            {"similarity2",
             &O::similarity2,
             {{"cosine", O::StageTwoSimilarity::kCosine}, {"affine", O::StageTwoSimilarity::kAffine}},
             "stage 2: cosine, or affine (1 + c) / 2"},
            {"ranking",
             &O::ranking,
             {{"global", O::Ranking::kGlobal}, {"per_image", O::Ranking::kPerImage}},
             "examples compete, or per_image with the same ratio each"},
            {"counts",
             &O::counts,
             {{"per_group", O::Counts::kPerGroup}, {"exact_total", O::Counts::kExactTotal}},
             "exact_total: the query gets what the examples leave of the rounded total"},
            {"rounding",
             &O::rounding,
             {{"floor", Rounding::kFloor}, {"round", Rounding::kNearestEven}, {"ceil", Rounding::kCeil}},
             "of counts: floor, round, ceil"},
            row_breaks(&O::row_breaks_compete)},
       .steps = steps,
       .check = [](const O& o) {
         if (o.relu_per_head && o.importance == O::Importance::kAttention)
           throw Error("catp: relu=per_head clips growth, which importance=attention does not take");
       }};
  return method;
}

}  // namespace

PolicyPtr make_catp(const CatpOptions& options) {
  return make(method(), options);
}

PolicyRow catp_row() {
  return row(method(), {.paper = "arXiv 2508.07871",
                        .summary = "coverage and text alignment of each image, then pruning between examples and query",
                        .sites = {Site::kProjectorOutput, Site::kBeforeLayer},
                        .needs = "embeddings, attention of the last row in two layers, hidden states of two layers",
                        .refusal = needs_layers<4>,
                        .examples = {{"catp:keep_ratio=2/9"},
                                     {"catp:keep_ratio=1/3,k=4,stage1_share=0"},
                                     {"catp:keep_ratio=1/9,stage1_share=1"},
                                     {"catp:keep_ratio=1/2,ranking=per_image,delta_norm=max"}}});
}

}  // namespace espalier
