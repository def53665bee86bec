// SPDX-License-Identifier: Apache-2.0
// CATP: "Contextually Adaptive Token Pruning" (arXiv 2508.07871), as docs/specs/catp.md reads it; A1 … A22 are that
// page's open points. Symbols: R -> 1 - keep_ratio, X_i -> image tokens of image i in `hidden` at the projector's
// output, T_i
// -> text of the image, vbar_i -> text mean, simhat -> similarity, F_align -> modular, dA -> AttentionGrowth, C ->
// context tokens, vq -> mean of the query pool, vc -> mean of the context pool, S_ctx and S_qry -> the scores of the
// two steps. Layers: the paper counts from 1 and cuts after layer K, which is before 0-based layer k = K; its A_K and
// A_{K-1} are the attention of layers k-1 and k-2, its h^K is hidden.k. The query is cut before layer k+1. There is no
// released code. Readings of our own: at least one token of each group stays; an image outside every example (in the
// system prompt) takes part in stage 1 only; pinned tokens are the first picks of stage 1. With delta_norm=none, dA
// being 1e-4 … 1e-2 where 0.6·cos spans tenths, the cosine decides nearly everything (A13).
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

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/catp_budget.h"
#include "pruning/prompt_text.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Options = CatpOptions;

constexpr double kTinyRange = 1e-12;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr ValueNames<ops::Similarity, 3> kSimilarities = {
    {{"affine", ops::Similarity::kAffine}, {"clamp", ops::Similarity::kClamp}, {"minmax", ops::Similarity::kMinmax}}};
constexpr ValueNames<Options::Scale, 2> kScales = {
    {{"none", Options::Scale::kNone}, {"div_mean", Options::Scale::kDivMean}}};
constexpr ValueNames<Options::QueryPool, 3> kQueryPools = {
    {{"all", Options::QueryPool::kAll}, {"text", Options::QueryPool::kText}, {"last", Options::QueryPool::kLast}}};
constexpr ValueNames<Options::ContextPool, 2> kContextPools = {
    {{"all", Options::ContextPool::kAll}, {"image", Options::ContextPool::kImage}}};
constexpr ValueNames<Options::Importance, 2> kImportances = {
    {{"growth", Options::Importance::kGrowth}, {"attention", Options::Importance::kAttention}}};
constexpr ValueNames<bool, 2> kRelus = {{{"after_mean", false}, {"per_head", true}}};
constexpr ValueNames<Options::DeltaNorm, 4> kDeltaNorms = {{{"none", Options::DeltaNorm::kNone},
                                                            {"max", Options::DeltaNorm::kMax},
                                                            {"sum", Options::DeltaNorm::kSum},
                                                            {"minmax", Options::DeltaNorm::kMinmax}}};
constexpr ValueNames<Options::StageTwoSimilarity, 2> kStageTwoSimilarities = {
    {{"cosine", Options::StageTwoSimilarity::kCosine}, {"affine", Options::StageTwoSimilarity::kAffine}}};
constexpr ValueNames<Options::Ranking, 2> kRankings = {
    {{"global", Options::Ranking::kGlobal}, {"per_image", Options::Ranking::kPerImage}}};
constexpr ValueNames<Options::Counts, 2> kCounts = {
    {{"per_group", Options::Counts::kPerGroup}, {"exact_total", Options::Counts::kExactTotal}}};
constexpr ValueNames<Rounding, 3> kRoundings = {
    {{"floor", Rounding::kFloor}, {"round", Rounding::kNearestEven}, {"ceil", Rounding::kCeil}}};

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
at::Tensor normalised(const at::Tensor& growth, const at::Tensor& judged, Options::DeltaNorm norm) {
  const at::Tensor largest = growth.masked_fill(judged.logical_not(), -kInfinity).max();
  switch (norm) {
    case Options::DeltaNorm::kNone:
      return growth;
    case Options::DeltaNorm::kMax:
      return growth / largest.clamp_min(kTinyRange);
    case Options::DeltaNorm::kSum:
      return growth / growth.masked_fill(judged.logical_not(), 0).sum().clamp_min(kTinyRange);
    case Options::DeltaNorm::kMinmax:
      break;
  }
  const at::Tensor low = growth.masked_fill(judged.logical_not(), kInfinity).min(), range = largest - low;
  return at::where(range < kTinyRange, at::full_like(growth, 0.5), (growth - low) / range.clamp_min(kTinyRange));
}

struct CatpState final : PruningPolicy::State {
  int k = 0;
  std::vector<int64_t> left_per_image;  // by stage 1; empty before it, or without one
};

class Catp final : public PlannedPolicy {
 public:
  explicit Catp(const CatpOptions& options);
  std::string spec() const override;
  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override;
  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const override;
  std::vector<Signal> needs(const ActPoint& point, const TokenLayout& layout, const State* state) const override;
  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override;

 private:
  int k_of(const ModelFacts& model) const { return options_.k.value_or(default_k(model.num_layers)); }
  std::vector<int64_t> left_per_image(const TokenLayout& layout, const CatpState& state) const;
  at::Tensor query_pool(const TokenLayout& layout, const CatpState& state) const;
  at::Tensor context_pool(const TokenLayout& layout) const;
  std::vector<Signal> context_needs(const TokenLayout& layout, const CatpState& state) const;
  at::Tensor alignment(const at::Tensor& hidden, const TokenLayout& layout,
                       const std::vector<int64_t>& image_sizes) const;
  Verdict decide_stage1(const TokenLayout& layout, const at::Tensor& hidden, CatpState& state) const;
  Verdict decide_context(const TokenLayout& layout, std::span<const at::Tensor> signals, const CatpState& state) const;
  Verdict decide_query(const TokenLayout& layout, const at::Tensor& hidden, const CatpState& state) const;
  at::Tensor keep_group(const TokenLayout& layout, const at::Tensor& scores, const at::Tensor& judged,
                        const Blocks& blocks, const std::vector<int64_t>& images) const;

  CatpOptions options_;
};

Catp::Catp(const CatpOptions& options)
    : PlannedPolicy("catp", options.common, options.row_breaks_compete), options_(options) {
  check_amount("catp", options.amount);
  const auto [num, den] = options.stage1_share;
  if (den <= 0 || num < 0 || num > den)
    throw Error("catp: stage1_share=" + std::to_string(num) + "/" + std::to_string(den) + " is not from 0 to 1");
  if (num == den) options_.stage1_share = {1, 1};
  if (options.relu_per_head && options.importance == Options::Importance::kAttention)
    throw Error("catp: relu=per_head clips growth, which importance=attention does not take");
  for (const auto& [name, value] : {std::pair("lambda1", options.lambda1), std::pair("lambda2", options.lambda2)})
    if (!(value >= 0.0) || std::isinf(value)) throw Error(std::string("catp: ") + name + " must be 0 or more");
}

std::string Catp::spec() const {
  const CatpOptions defaults;
  SpecWriter writer("catp");
  writer.amount(options_.amount);
  if (options_.k) writer.add("k", std::to_string(*options_.k));
  return writer.add("lambda1", options_.lambda1, defaults.lambda1)
      .add("lambda2", options_.lambda2, defaults.lambda2)
      .add("stage1_share", options_.stage1_share, defaults.stage1_share)
      .choice("similarity", options_.similarity, defaults.similarity, kSimilarities)
      .choice("scale", options_.scale, defaults.scale, kScales)
      .choice("query_pool", options_.query_pool, defaults.query_pool, kQueryPools)
      .choice("context_pool", options_.context_pool, defaults.context_pool, kContextPools)
      .choice("importance", options_.importance, defaults.importance, kImportances)
      .choice("relu", options_.relu_per_head, defaults.relu_per_head, kRelus)
      .choice("delta_norm", options_.delta_norm, defaults.delta_norm, kDeltaNorms)
      .choice("similarity2", options_.similarity2, defaults.similarity2, kStageTwoSimilarities)
      .choice("ranking", options_.ranking, defaults.ranking, kRankings)
      .choice("counts", options_.counts, defaults.counts, kCounts)
      .choice("rounding", options_.rounding, defaults.rounding, kRoundings)
      .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
      .common(common())
      .text();
}

std::vector<PlannedPoint> Catp::plan(const ModelFacts& model, const PromptLayout& prompt) const {
  const int k = k_of(model);
  const bool has_stage2 = options_.stage1_share != Fraction{1, 1};
  if ((has_stage2 || options_.k) && (k < 2 || k > model.num_layers - 2))
    throw Error("catp: k=" + std::to_string(k) + " is not from 2 to " + std::to_string(model.num_layers - 2) +
                ", as a model of " + std::to_string(model.num_layers) + " layers needs");
  const CatpBudget budget = catp_budget(options_, prompt);
  if (budget.prunes_context && options_.lambda2 > 0 && options_.query_pool == Options::QueryPool::kText) {
    const bool has_text = std::any_of(prompt.segments.begin(), prompt.segments.end(), [&](const Segment& s) {
      return s.kind == Segment::Kind::kText && s.example == prompt.query_example && s.end > s.begin;
    });
    if (!has_text) throw Error("catp: query_pool=text, but the query sample has no text");
  }
  int64_t left = 0;
  for (const int64_t n : budget.stage1) left += n;
  if (!has_stage2) return {{{Site::kProjectorOutput}, left, budget.stage1, budget.prunes_stage1}};
  left -= budget.after_stage1(budget.context_images) - budget.context;
  left -= budget.after_stage1(budget.query_images) - budget.query;
  std::vector<PlannedPoint> points;
  if (options_.stage1_share.num > 0) points.push_back({{Site::kProjectorOutput}, {}, {}, budget.prunes_stage1});
  points.push_back({{Site::kBeforeLayer, k}, {}, {}, budget.prunes_context});
  points.push_back({{Site::kBeforeLayer, k + 1}, left, {}, budget.prunes_query});
  return points;
}

std::unique_ptr<PruningPolicy::State> Catp::begin_sequence(const ModelFacts& model, const PromptLayout&) const {
  auto state = std::make_unique<CatpState>();
  state->k = k_of(model);
  return state;
}

std::vector<Signal> Catp::needs(const ActPoint& point, const TokenLayout& layout, const State* state) const {
  const auto& catp_state = dynamic_cast<const CatpState&>(*state);
  if (point == ActPoint{Site::kBeforeLayer, catp_state.k}) return context_needs(layout, catp_state);
  return {Tap{Tap::What::kHidden}};
}

Verdict Catp::decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                     State* state) const {
  auto& catp_state = dynamic_cast<CatpState&>(*state);
  if (point.site == Site::kProjectorOutput) return decide_stage1(layout, signals[0], catp_state);
  if (point.layer == catp_state.k) return decide_context(layout, signals, catp_state);
  return decide_query(layout, signals[0], catp_state);
}

std::vector<int64_t> Catp::left_per_image(const TokenLayout& layout, const CatpState& state) const {
  return state.left_per_image.empty() ? tokens_per_image(layout, row_breaks_compete()) : state.left_per_image;
}

// lambda1 · F_align as a number for each image token, float32 [m]; 0 for images without text.
at::Tensor Catp::alignment(const at::Tensor& hidden, const TokenLayout& layout,
                           const std::vector<int64_t>& image_sizes) const {
  const auto texts = text_of_each_image(*layout.prompt);
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens);
  const at::Tensor cosines =
      ops::cosine_score(hidden, text_means(hidden, layout, texts), layout.image_tokens);  // [images, m]
  const at::Tensor own = cosines.gather(0, image.unsqueeze(0)).squeeze(0);
  at::Tensor modular = rescaled(own, image, cosines.size(0), options_.similarity).mul(options_.lambda1);
  // F_div / S + F_align has the maximum where F_div + S · F_align has it.
  if (options_.scale == Options::Scale::kDivMean)
    modular = modular * int64_tensor(image_sizes).to(hidden.device()).index_select(0, image);
  std::vector<int64_t> lengths;
  for (const auto& text : texts) lengths.push_back(std::ssize(text));
  const at::Tensor text_tokens = int64_tensor(lengths).to(hidden.device()).index_select(0, image);
  return modular.masked_fill(text_tokens == 0, 0.0);
}

Verdict Catp::decide_stage1(const TokenLayout& layout, const at::Tensor& hidden, CatpState& state) const {
  const std::vector<int64_t> sizes = tokens_per_image(layout, row_breaks_compete());
  std::vector<int64_t> begin{0}, num_kept = catp_budget(options_, *layout.prompt).stage1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    begin.push_back(begin.back() + sizes[i]);
    num_kept[i] = std::min(num_kept[i], sizes[i]);
  }
  const at::Tensor picks = ops::facility_location_greedy(
      ops::gather_rows(hidden, layout.image_tokens), int64_tensor(begin), int64_tensor(num_kept), options_.similarity,
      1.0, options_.lambda1 > 0 ? ops::OptionalTensor(alignment(hidden, layout, sizes)) : std::nullopt,
      layout.pinned.index_select(0, layout.image_tokens));
  state.left_per_image = num_kept;
  return {.kept = std::get<0>(picks.sort())};
}

// Tokens whose mean state is vq, int64 [p].
at::Tensor Catp::query_pool(const TokenLayout& layout, const CatpState& state) const {
  const PromptLayout& prompt = *layout.prompt;
  const int64_t n = layout.num_tokens();
  if (options_.query_pool == Options::QueryPool::kLast) return at::arange(n - 1, n, layout.image_tokens.options());
  at::Tensor pool = layout.example == prompt.query_example;
  int64_t count = 0;
  bool count_is_known = true;
  for (const Segment& s : prompt.segments) {
    if (s.kind == Segment::Kind::kText && s.example == prompt.query_example) count += s.end - s.begin;
    // How many row breaks followed their rows is not known here.
    if (s.kind == Segment::Kind::kRowBreak && !row_breaks_compete()) count_is_known = false;
  }
  if (options_.query_pool == Options::QueryPool::kText)
    return indices_of(pool & (layout.kind == static_cast<int64_t>(Segment::Kind::kText)), count);
  const std::vector<int64_t> left = left_per_image(layout, state);
  for (const int64_t i : catp_budget(options_, prompt).query_images) count += left[i];
  return indices_of(pool, count_is_known ? std::optional(count) : std::nullopt);
}

std::vector<Signal> Catp::context_needs(const TokenLayout& layout, const CatpState& state) const {
  if (options_.importance == Options::Importance::kAttention) {
    std::vector<Signal> needs = {AttentionProbe{.layer = state.k - 1}};
    if (options_.lambda2 > 0) needs.emplace_back(Tap{Tap::What::kHidden});
    return needs;
  }
  AttentionGrowth growth{.lower = state.k - 2, .upper = state.k - 1, .relu_per_head = options_.relu_per_head};
  if (options_.lambda2 == 0) return {growth};
  if (options_.delta_norm != Options::DeltaNorm::kNone) return {growth, Tap{Tap::What::kHidden}};
  growth.pool = query_pool(layout, state);
  // lambda2 · (1 + c) / 2 is lambda2 / 2 · c and a constant.
  growth.cosine_weight =
      options_.similarity2 == Options::StageTwoSimilarity::kAffine ? options_.lambda2 / 2 : options_.lambda2;
  return {growth};
}

// The kept ordinals when `judged` tokens compete and all others stay. `blocks` tells how many image tokens stay in all.
at::Tensor Catp::keep_group(const TokenLayout& layout, const at::Tensor& scores, const at::Tensor& judged,
                            const Blocks& blocks, const std::vector<int64_t>& images) const {
  const at::Tensor always = layout.pinned.index_select(0, layout.image_tokens) | judged.logical_not();
  if (common().min_per_image == 0) return keep_best(scores, always, blocks);
  const auto of_all = protected_per_image(*layout.prompt, row_breaks_compete(), common().min_per_image);
  std::vector<int64_t> of_group(of_all.size(), 0);
  for (const int64_t i : images) of_group[i] = of_all[i];
  return keep_best(scores, always, blocks, of_group, tokens_per_image(layout, row_breaks_compete()));
}

Verdict Catp::decide_context(const TokenLayout& layout, std::span<const at::Tensor> signals,
                             const CatpState& state) const {
  const CatpBudget budget = catp_budget(options_, *layout.prompt);
  const at::Tensor judged =
      is_context(layout.example.index_select(0, layout.image_tokens), layout.prompt->query_example);
  const bool is_affine = options_.similarity2 == Options::StageTwoSimilarity::kAffine;
  at::Tensor scores = normalised(signals[0], judged, options_.delta_norm);
  if (signals.size() > 1) {
    const at::Tensor mean = signals[1].index_select(0, query_pool(layout, state)).to(at::kFloat).mean(0, true);
    const at::Tensor cosine = ops::cosine_score(signals[1], mean, layout.image_tokens)[0];
    scores = scores + options_.lambda2 * (is_affine ? (cosine + 1) / 2 : cosine);
  } else if (is_affine) {
    scores = scores + options_.lambda2 / 2;
  }
  std::vector<int64_t> left = left_per_image(layout, state);
  Blocks blocks;
  if (options_.ranking == Options::Ranking::kPerImage) {
    blocks = {left, left};
    for (const int64_t i : budget.context_images) blocks.num_kept[i] = std::min(budget.context_per_image[i], left[i]);
  } else {
    int64_t context = 0;
    for (const int64_t i : budget.context_images) context += left[i];
    const int64_t m = layout.num_image_tokens();
    blocks = {{m}, {m - context + std::min(budget.context, context)}};
  }
  return {
      .kept = keep_group(layout, scores, judged, blocks, budget.context_images), .scores = scores, .judged = judged};
}

// Tokens whose mean state is vc, bool [n].
at::Tensor Catp::context_pool(const TokenLayout& layout) const {
  const PromptLayout& prompt = *layout.prompt;
  if (catp_budget(options_, prompt).context_images.empty())
    return (layout.example >= 0) & (layout.kind == static_cast<int64_t>(Segment::Kind::kText));
  const at::Tensor context = is_context(layout.example, prompt.query_example);
  if (options_.context_pool == Options::ContextPool::kAll) return context;
  at::Tensor is_image_token = at::full_like(context, false);
  is_image_token.index_fill_(0, layout.image_tokens, true);
  return context & is_image_token;
}

Verdict Catp::decide_query(const TokenLayout& layout, const at::Tensor& hidden, const CatpState& state) const {
  const CatpBudget budget = catp_budget(options_, *layout.prompt);
  const at::Tensor judged = layout.example.index_select(0, layout.image_tokens) == layout.prompt->query_example;
  const at::Tensor mean = mean_of_rows(hidden, context_pool(layout));
  at::Tensor scores = ops::cosine_score(hidden, mean, layout.image_tokens)[0];
  if (options_.similarity2 == Options::StageTwoSimilarity::kAffine) scores = (scores + 1) / 2;
  const std::vector<int64_t> left = left_per_image(layout, state);  // the context step left the query's images alone
  int64_t query = 0;
  for (const int64_t i : budget.query_images) query += left[i];
  const int64_t m = layout.num_image_tokens();
  const Blocks blocks{{m}, {m - query + std::min(budget.query, query)}};
  return {.kept = keep_group(layout, scores, judged, blocks, budget.query_images), .scores = scores, .judged = judged};
}

}  // namespace

PolicyPtr make_catp(const CatpOptions& options) {
  return std::make_shared<Catp>(options);
}

PlannedPolicyPtr catp_from(const OptionReader& reader) {
  CatpOptions options;
  options.amount = reader.amount();
  if (reader.text("k")) options.k = static_cast<int>(reader.integer("k", 0, 2, 1 << 20));
  options.lambda1 = reader.number("lambda1", options.lambda1);
  options.lambda2 = reader.number("lambda2", options.lambda2);
  options.stage1_share = reader.fraction("stage1_share", options.stage1_share);
  options.similarity = reader.choice("similarity", options.similarity, kSimilarities);
  options.scale = reader.choice("scale", options.scale, kScales);
  options.query_pool = reader.choice("query_pool", options.query_pool, kQueryPools);
  options.context_pool = reader.choice("context_pool", options.context_pool, kContextPools);
  options.importance = reader.choice("importance", options.importance, kImportances);
  options.relu_per_head = reader.choice("relu", options.relu_per_head, kRelus);
  options.delta_norm = reader.choice("delta_norm", options.delta_norm, kDeltaNorms);
  options.similarity2 = reader.choice("similarity2", options.similarity2, kStageTwoSimilarities);
  options.ranking = reader.choice("ranking", options.ranking, kRankings);
  options.counts = reader.choice("counts", options.counts, kCounts);
  options.rounding = reader.choice("rounding", options.rounding, kRoundings);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Catp>(options);
}

}  // namespace espalier
