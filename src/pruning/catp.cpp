// SPDX-License-Identifier: Apache-2.0
// CATP: "Contextually Adaptive Token Pruning" (arXiv 2508.07871), as docs/specs/catp.md reads it; A1 … A22 are that
// page's open points. There is no released code.
//   R            1 - keep_ratio
//   X_i, T_i     image tokens of image i in `hidden` at the projector's output; text of the image
//   vbar_i       text mean
//   simhat       similarity
//   F_align      modular
//   dA           AttentionGrowth
//   S_ctx, S_qry context_score and query_score of catp_stage2.cpp
// Layers: the paper counts from 1 and cuts after layer K, which is before 0-based layer k = K; its A_K and A_{K-1} are
// the attention of layers k-1 and k-2, its h^K is hidden.k. The query is cut before layer k+1. Readings of our own:
//   - at least one token of each group stays;
//   - an image outside every example (in the system prompt) takes part in stage 1 only;
//   - pinned tokens are the first picks of stage 1;
//   - with delta_norm=none, dA being 1e-4 … 1e-2 where 0.6·cos spans tenths, the cosine decides nearly all (A13).
// CATP+ (docs/specs/catp_plus.md) is a preset: the same steps under other defaults.
#include "espalier/policies/catp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scatter_reduce.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/catp_budget.h"
#include "pruning/catp_stage2.h"
#include "pruning/determinantal.h"
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
  const bool reads_text = o.coverage == O::Coverage::kFacility;
  Step step{.at = {Site::kProjectorOutput},
            // A number stands for its share of all image tokens.
            .scope = o.amount.num_kept ? Scope::kRequest
                     : reads_text      ? Scope::kExample
                                       : Scope::kImage,
            .budget = {.pool = Budget::Pool::kImage, .counts = budget.stage1, .is_interim = is_interim},
            .needs = [](const TokenLayout&) -> std::vector<Signal> { return {Tap{Tap::What::kHidden}}; }};
  step.decide = [o, reads_text](const TokenLayout& layout, std::span<const at::Tensor> signals) {
    if (!reads_text) {
      const at::Tensor alike = at::ones({layout.num_image_tokens()}, layout.image_tokens.options().dtype(at::kFloat));
      return Verdict{.choose = determinantal_choice(signals[0], layout.image_tokens, alike)};
    }
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

std::vector<Step> steps(const std::string& name, const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int k = o.k.value_or(default_k(model.num_layers));
  const bool has_stage2 = o.stage1_share.num < o.stage1_share.den;
  if ((has_stage2 || o.k) && (k < 2 || k > model.num_layers - 2))
    throw Error(name + ": k=" + std::to_string(k) + " is not from 2 to " + std::to_string(model.num_layers - 2) +
                ", as a model of " + std::to_string(model.num_layers) + " layers needs");
  const auto budget = std::make_shared<const CatpBudget>(catp_budget(o, prompt, {k, model.num_layers}, name));
  if (budget->prunes_context && o.lambda2 > 0 && o.query_pool == O::QueryPool::kText &&
      text_of_example(prompt, prompt.query_example).empty())
    throw Error(name + ": query_pool=text, but the query sample has no text");
  std::vector<Step> steps;
  if (o.stage1_share.num > 0) steps.push_back(stage1(o, *budget, has_stage2));
  if (has_stage2)
    for (Step& step : catp_stage2(o, k, budget)) steps.push_back(std::move(step));
  return steps;
}

// Options that another option leaves without a meaning.
void check(const std::string& name, const O& o) {
  const auto refuse = [&](bool is_wrong, const char* why) {
    if (is_wrong) throw Error(name + ": " + why);
  };
  const bool has_growth = o.importance == O::Importance::kGrowth;
  if (o.relu_per_head && !has_growth)
    throw Error(name + ": relu=per_head clips growth, which importance=" +
                (o.importance == O::Importance::kAttention ? "attention" : "own_text") + " does not take");
  refuse(o.rank == O::Rank::kNext && has_growth && o.query_score == O::QueryScore::kCosine,
         "rank=next says whose attention counts, and importance=growth,query_score=cosine reads none");
  const bool is_facility = o.similarity == O().similarity && o.scale == O().scale && o.lambda1 == O().lambda1;
  refuse(o.coverage == O::Coverage::kDpp && !is_facility,
         "lambda1, similarity and scale shape coverage=facility, and coverage=dpp takes none of them");
  refuse(o.selection == O::Selection::kDpp && o.ranking == O::Ranking::kGlobal,
         "selection=dpp chooses in each image by itself: it takes ranking=per_image");
  refuse(o.selection == O::Selection::kTop && o.relevance_floor != O().relevance_floor,
         "relevance_floor is part of selection=dpp, and selection=top does not take it");
  refuse(o.counts == O::Counts::kExactTotal && judges_query_by_image(o),
         "counts=exact_total gives the query's images one number, and here each has its own");
  refuse(
      o.budget == O::BudgetOf::kMean && o.stage1_share.num != o.stage1_share.den && o.stage1_share != O().stage1_share,
      "budget=mean splits the amount itself: stage1_share is 1 or left out");
}

template <typename T>
OptionSet<T> options() {
  using Similarity = ops::Similarity;
  return {keep_ratio<T>(&T::amount),
          num_kept<T>(&T::amount, "of all image tokens of the request; this or keep_ratio"),
          {"k", &T::k,
           "the paper's K: examples are cut before layer k, the query before k + 1 or as query_cut says; by the depth "
           "10, 6 or about 3/16 of it",
           at_least(2)},
          {"lambda1", &T::lambda1, "stage 1: weight of the alignment with the image's text", at_least(0)},
          {"lambda2", &T::lambda2, "stage 2: weight of the cosine with the query sample", at_least(0)},
          {"stage1_share", &T::stage1_share,
           "part of what is removed that stage 1 removes; 1: stage 1 alone, 0: stage 2 alone", kShare},
          {"similarity",
           &T::similarity,
           {{"affine", Similarity::kAffine}, {"clamp", Similarity::kClamp}, {"minmax", Similarity::kMinmax}},
           "how stage 1 maps a cosine to 0 … 1: affine, clamp, minmax"},
          {"scale",
           &T::scale,
           {{"none", O::Scale::kNone}, {"div_mean", O::Scale::kDivMean}},
           "div_mean: coverage is divided by the image's number of tokens"},
          {"query_pool",
           &T::query_pool,
           {{"all", O::QueryPool::kAll}, {"text", O::QueryPool::kText}, {"last", O::QueryPool::kLast}},
           "tokens of the query sample whose mean state counts: all, text, last"},
          {"context_pool",
           &T::context_pool,
           {{"all", O::ContextPool::kAll}, {"image", O::ContextPool::kImage}},
           "tokens of the examples whose mean state counts: all, image"},
          {"importance",
           &T::importance,
           {{"growth", O::Importance::kGrowth},
            {"attention", O::Importance::kAttention},
            {"own_text", O::Importance::kOwnText}},
           "of the examples' tokens: growth of the last row's attention; attention of the last row; of the text after "
           "the token's image"},
          {"query_score",
           &T::query_score,
           {{"cosine", O::QueryScore::kCosine},
            {"attention", O::QueryScore::kAttention},
            {"text", O::QueryScore::kText},
            {"both", O::QueryScore::kBoth}},
           "of the query's tokens: cosine with the examples; attention of the last row; of the text after the image; "
           "the larger of both"},
          {"rank",
           &T::rank,
           {{"previous", O::Rank::kPrevious}, {"next", O::Rank::kNext}},
           "whose attention: previous, the layer before the cut; next, the one after it; catp+: previous, but never "
           "layer 0 or 1"},
          {"query_cut",
           &T::query_cut,
           {{"after", O::QueryCut::kAfter}, {"together", O::QueryCut::kTogether}},
           "the query's images are cut before layer k + 1, or together with the examples' before k"},
          {"selection",
           &T::selection,
           {{"top", O::Selection::kTop}, {"dpp", O::Selection::kDpp}},
           "stage 2 keeps the best, or by dpp, image by image, what is relevant and differs"},
          {"relevance_floor", &T::relevance_floor,
           "selection=dpp: relevance of a token with score 0, beside 1 for the best", at_least(0)},
          {"coverage",
           &T::coverage,
           {{"facility", O::Coverage::kFacility}, {"dpp", O::Coverage::kDpp}},
           "stage 1: facility location with the text, or a determinantal point process without"},
          {"budget",
           &T::budget,
           {{"final", O::BudgetOf::kFinal}, {"mean", O::BudgetOf::kMean}},
           "the amount is left at the end, or on the average over layers, 10/7 of it before layer k"},
          {"relu",
           &T::relu_per_head,
           {{"after_mean", false}, {"per_head", true}},
           "per_head: attention growth is clipped in each head"},
          {"delta_norm",
           &T::delta_norm,
           {{"none", O::DeltaNorm::kNone},
            {"max", O::DeltaNorm::kMax},
            {"sum", O::DeltaNorm::kSum},
            {"minmax", O::DeltaNorm::kMinmax}},
           "attention growth over the examples' tokens divided: none, max, sum, minmax"},
          {"similarity2",
           &T::similarity2,
           {{"cosine", O::StageTwoSimilarity::kCosine}, {"affine", O::StageTwoSimilarity::kAffine}},
           "stage 2: cosine, or affine (1 + c) / 2"},
          {"ranking",
           &T::ranking,
           {{"global", O::Ranking::kGlobal}, {"per_image", O::Ranking::kPerImage}},
           "examples compete, or per_image with the same ratio each; under selection=dpp and query_cut=together so has "
           "each image of the query"},
          {"counts",
           &T::counts,
           {{"per_group", O::Counts::kPerGroup}, {"exact_total", O::Counts::kExactTotal}},
           "exact_total: the query gets what the examples leave of the rounded total"},
          {"rounding",
           &T::rounding,
           {{"floor", Rounding::kFloor}, {"round", Rounding::kNearestEven}, {"ceil", Rounding::kCeil}},
           "of counts: floor, round, ceil"},
          row_breaks<T>(&T::row_breaks_compete)};
}

template <typename T>
const Method<T>& method() {
  static constexpr const char* kName = std::is_same_v<T, CatpPlusOptions> ? "catp+" : "catp";
  static const Method<T> method = {.name = kName,
                                   .options = options<T>(),
                                   .steps = [](const T& o, const ModelFacts& model,
                                               const PromptLayout& prompt) { return steps(kName, o, model, prompt); },
                                   .check = [](const T& o) { check(kName, o); }};
  return method;
}

}  // namespace

CatpPlusOptions::CatpPlusOptions() {
  coverage = Coverage::kDpp;
  lambda2 = 0;
  importance = Importance::kOwnText;
  query_score = QueryScore::kAttention;
  rank = std::nullopt;
  query_cut = QueryCut::kTogether;
  selection = Selection::kDpp;
  ranking = Ranking::kPerImage;
  budget = BudgetOf::kMean;
}

PolicyPtr make_catp(const CatpOptions& options) {
  return make(method<CatpOptions>(), options);
}

PolicyPtr make_catp_plus(const CatpPlusOptions& options) {
  return make(method<CatpPlusOptions>(), options);
}

PolicyRow catp_row() {
  return row(method<CatpOptions>(),
             {.paper = "arXiv 2508.07871",
              .summary = "coverage and text alignment of each image, then pruning between examples and query",
              .sites = {Site::kProjectorOutput, Site::kBeforeLayer},
              .needs = "embeddings, attention of the last row in two layers, hidden states of two layers",
              .refusal = needs_layers<4>,
              .examples = {{"catp:keep_ratio=2/9"},
                           {"catp:keep_ratio=1/3,k=4,stage1_share=0"},
                           {"catp:keep_ratio=1/9,stage1_share=1"},
                           {"catp:keep_ratio=1/2,ranking=per_image,delta_norm=max"}}});
}

PolicyRow catp_plus_row() {
  return row(method<CatpPlusOptions>(),
             {.paper = "-",
              .summary = "catp with attention in place of cosines, and tokens that differ in both stages",
              .sites = {Site::kProjectorOutput, Site::kBeforeLayer},
              .needs = "embeddings, attention of text rows and of the last row in one layer, hidden states of it",
              .refusal = needs_layers<4>,
              .examples = {{"catp+:keep_ratio=2/9"},
                           {"catp+:keep_ratio=1/3,k=4,query_score=both,budget=final"},
                           {"catp+:keep_ratio=1/4,k=3,rank=next,query_score=text,query_cut=after"}}});
}

}  // namespace espalier
