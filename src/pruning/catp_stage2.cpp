// SPDX-License-Identifier: Apache-2.0
// The scores of CATP's stage 2, and which tokens they leave. Every score is about image tokens, float32 [m].
#include "pruning/catp_stage2.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "espalier/ops.h"
#include "pruning/determinantal.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = CatpOptions;

constexpr double kTinyRange = 1e-12;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

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

// ---- pools ----

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

// ---- what is read ----

// What one step judges.
struct Part {
  bool context = false, query = false;
  int cut = 0;  // before this layer
};

// The growth signal brings its cosine along.
bool is_fused(const O& o) {
  return o.importance == O::Importance::kGrowth && o.lambda2 > 0 && o.delta_norm == O::DeltaNorm::kNone;
}

// Of what its scores are made, in the order of its signals; undefined where no option asks for it.
struct Looks {
  at::Tensor growth;    // [m] dA, with its cosine where is_fused()
  at::Tensor last;      // [m] attention of the last row
  at::Tensor own_text;  // [m] of the text behind the token's image
  at::Tensor hidden;    // [n, d] entering the layer that is cut before

  // Visits those that the step asks for.
  template <typename Visit>
  static void for_each(const O& o, const Part& part, Visit&& visit) {
    using enum O::QueryScore;
    const auto importance = [&](O::Importance kind) { return part.context && o.importance == kind; };
    const auto score = [&](O::QueryScore kind) { return part.query && o.query_score == kind; };
    if (importance(O::Importance::kGrowth)) visit(&Looks::growth);
    if (importance(O::Importance::kAttention) || score(kAttention) || score(kBoth)) visit(&Looks::last);
    if (importance(O::Importance::kOwnText) || score(kText) || score(kBoth)) visit(&Looks::own_text);
    const bool has_cosine = part.context && o.lambda2 > 0 && !is_fused(o);
    if (has_cosine || score(kCosine) || o.selection == O::Selection::kDpp) visit(&Looks::hidden);
  }
};

// The layer whose attention counts.
int layer_read(const O& o, int cut) {
  if (!o.rank) return std::max(cut - 1, 2);
  return *o.rank == O::Rank::kNext ? cut : cut - 1;
}

std::vector<Signal> needs(const O& o, const Part& part, const CatpBudget& budget, const TokenLayout& layout) {
  std::vector<Signal> signals;
  Looks::for_each(o, part, [&](at::Tensor Looks::*look) {
    if (look == &Looks::hidden) {
      signals.emplace_back(Tap{Tap::What::kHidden});
    } else if (look == &Looks::last) {
      signals.emplace_back(AttentionProbe{.layer = layer_read(o, part.cut)});
    } else if (look == &Looks::own_text) {
      signals.emplace_back(AttentionProbe{
          .layer = layer_read(o, part.cut), .rows = AttentionProbe::Rows::kGiven, .groups = own_text_groups(layout)});
    } else {
      AttentionGrowth growth{.lower = part.cut - 2, .upper = part.cut - 1, .relu_per_head = o.relu_per_head};
      if (is_fused(o)) {
        growth.pool = query_pool(o, budget, layout);
        // lambda2 · (1 + c) / 2 is lambda2 / 2 · c and a constant.
        growth.cosine_weight = o.similarity2 == O::StageTwoSimilarity::kAffine ? o.lambda2 / 2 : o.lambda2;
      }
      signals.emplace_back(growth);
    }
  });
  return signals;
}

Looks looks_of(const O& o, const Part& part, std::span<const at::Tensor> signals) {
  Looks looks;
  size_t next = 0;
  Looks::for_each(o, part, [&](at::Tensor Looks::*look) { looks.*look = signals[next++]; });
  return looks;
}

// ---- scores ----

at::Tensor image_of_tokens(const TokenLayout& layout) {
  return layout.image.index_select(0, layout.image_tokens);
}

// A score that is not below 0 as a share of the largest in its image; negative ones count as 0.
at::Tensor share_of_largest(const at::Tensor& score, const TokenLayout& layout) {
  const at::Tensor image = image_of_tokens(layout), positive = score.to(at::kFloat).clamp_min(0);
  const at::Tensor largest = at::zeros({std::ssize(layout.prompt->images)}, positive.options())
                                 .scatter_reduce(0, image, positive, "amax")
                                 .index_select(0, image);
  return positive / largest.clamp_min(kTinyRange);
}

at::Tensor context_score(const O& o, const CatpBudget& budget, const TokenLayout& layout, const Looks& looks) {
  const at::Tensor judged =
      is_context(layout.example.index_select(0, layout.image_tokens), layout.prompt->query_example);
  const bool is_affine = o.similarity2 == O::StageTwoSimilarity::kAffine;
  const at::Tensor& importance = o.importance == O::Importance::kGrowth      ? looks.growth
                                 : o.importance == O::Importance::kAttention ? looks.last
                                                                             : looks.own_text;
  at::Tensor scores = normalised(importance, judged, o.delta_norm);
  if (o.lambda2 > 0 && !is_fused(o)) {
    const at::Tensor mean = looks.hidden.index_select(0, query_pool(o, budget, layout)).to(at::kFloat).mean(0, true);
    const at::Tensor cosine = ops::cosine_score(looks.hidden, mean, layout.image_tokens)[0];
    scores = scores + o.lambda2 * (is_affine ? (cosine + 1) / 2 : cosine);
  } else if (is_affine) {
    scores = scores + o.lambda2 / 2;
  }
  return scores;
}

at::Tensor query_score(const O& o, const CatpBudget& budget, const TokenLayout& layout, const Looks& looks) {
  switch (o.query_score) {
    case O::QueryScore::kAttention:
      return looks.last;
    case O::QueryScore::kText:
      return looks.own_text;
    case O::QueryScore::kBoth:
      return at::maximum(share_of_largest(looks.last, layout), share_of_largest(looks.own_text, layout));
    case O::QueryScore::kCosine:
      break;
  }
  const at::Tensor mean = mean_of_rows(looks.hidden, context_pool(o, budget, layout));
  const at::Tensor cosine = ops::cosine_score(looks.hidden, mean, layout.image_tokens)[0];
  return o.similarity2 == O::StageTwoSimilarity::kAffine ? (cosine + 1) / 2 : cosine;
}

// ---- steps ----

// Best of the context and best of the query, out of one pool that holds both.
std::function<Choice(const Pools&)> best_of_each(const CatpBudget& budget, const at::Tensor& scores,
                                                 const std::vector<int64_t>& images,
                                                 const std::vector<int64_t>& tokens_per_image) {
  std::vector<int64_t> order, sizes;  // places in the pool, the context's and behind them the query's
  for (const std::vector<int64_t>* group : {&budget.context_images, &budget.query_images}) {
    int64_t place = 0, size = 0;
    for (const int64_t i : images) {
      const int64_t end = place + tokens_per_image[static_cast<size_t>(i)];
      const bool is_in_group = std::ranges::count(*group, i) > 0;
      for (; place < end; ++place)
        if (is_in_group) order.push_back(place), ++size;
    }
    sizes.push_back(size);
  }
  const std::vector<int64_t> begin = {0, sizes[0], sizes[0] + sizes[1]},
                             kept = {std::min(budget.context, sizes[0]), std::min(budget.query, sizes[1])};
  return [scores, order, begin, kept](const Pools& pools) {
    const at::Tensor places = int64_tensor(order).to(pools.tokens.device());
    const at::Tensor tokens = pools.tokens.index_select(0, places);
    const at::Tensor ranked =
        scores.to(at::kFloat).index_select(0, tokens).masked_fill(pools.always.index_select(0, places), kInfinity);
    return Choice{tokens.index_select(0, ops::topk_sorted(ranked, int64_tensor(begin), int64_tensor(kept)))};
  };
}

Verdict decide(const O& o, const Part& part, const CatpBudget& budget, const std::vector<int64_t>& images,
               const TokenLayout& layout, std::span<const at::Tensor> signals) {
  const Looks looks = looks_of(o, part, signals);
  Verdict verdict;
  if (part.context) verdict.scores = context_score(o, budget, layout, looks);
  if (part.query) {
    const at::Tensor of_query = query_score(o, budget, layout, looks);
    const at::Tensor in_context =
        is_context(layout.example.index_select(0, layout.image_tokens), layout.prompt->query_example);
    verdict.scores = part.context ? at::where(in_context, verdict.scores, of_query) : of_query;
  }
  if (o.selection == O::Selection::kDpp)
    verdict.choose = determinantal_choice(looks.hidden, layout.image_tokens,
                                          share_of_largest(verdict.scores, layout) + o.relevance_floor);
  else if (part.context && part.query && o.ranking == O::Ranking::kGlobal)
    verdict.choose = best_of_each(budget, verdict.scores, images, layout.tokens_per_image());
  return verdict;
}

Step step_of(const O& o, const Part& part, const std::shared_ptr<const CatpBudget>& budget) {
  std::vector<int64_t> images;
  if (part.context) images = budget->context_images;
  if (part.query) images.insert(images.end(), budget->query_images.begin(), budget->query_images.end());
  std::ranges::sort(images);
  Step step{
      .at = {Site::kBeforeLayer, part.cut},
      .budget = {.counts = {(part.context ? budget->context : 0) + (part.query ? budget->query : 0)},
                 .images = images,
                 .is_interim = !part.query},
      .needs = [=](const TokenLayout& layout) { return needs(o, part, *budget, layout); },
      .decide = [=](const TokenLayout& layout,
                    std::span<const at::Tensor> signals) { return decide(o, part, *budget, images, layout, signals); }};
  const bool is_by_image = part.query ? judges_query_by_image(o) : o.ranking == O::Ranking::kPerImage;
  if (is_by_image) {
    step.budget.pool = Budget::Pool::kImage;
    step.budget.counts = budget->per_image;
  }
  return step;
}

}  // namespace

std::vector<Step> catp_stage2(const CatpOptions& o, int k, const std::shared_ptr<const CatpBudget>& budget) {
  const bool context = !budget->context_images.empty(), query = budget->can_rank_query && !budget->query_images.empty();
  std::vector<Step> steps;
  if (o.query_cut == O::QueryCut::kTogether) {
    if (context || query) steps.push_back(step_of(o, {.context = context, .query = query, .cut = k}, budget));
    return steps;
  }
  if (context) steps.push_back(step_of(o, {.context = true, .cut = k}, budget));
  if (query) steps.push_back(step_of(o, {.query = true, .cut = k + 1}, budget));
  return steps;
}

}  // namespace espalier
