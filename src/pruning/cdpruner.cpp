// SPDX-License-Identifier: Apache-2.0
// CDPruner (arXiv 2506.10967), as docs/specs/cdpruner.md reads it.
// Symbols: F -> image tokens of `hidden` at the projector's output, E and T -> kClipImage and kClipText (embedding: F
// and the mean input embedding of the query example's text), c -> mean cosine over the text segments, rel -> sign · c,
// r -> relevance, L -> ops::greedy_dpp's kernel, t -> num_kept of the crop. Differences from the released code:
// relevance is normalised over the crops of one image and not over a batch; where it is the same everywhere, or there
// is no text, all tokens count alike; the choice ends where nothing is left to gain and fills up by relevance (the code
// gives NaN); a token without a direction adds nothing; pinned tokens are the first picks; positions are kept unless
// positions=compact says otherwise.
#include "espalier/policies/cdpruner.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scatter_reduce.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Relevance = CdprunerOptions::Relevance;

constexpr double kOffset = 1e-6;  // the least relevant token keeps a trace; smaller ranges count as none
constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr ValueNames<Relevance, 3> kRelevances = {
    {{"clip", Relevance::kClip}, {"embedding", Relevance::kEmbedding}, {"none", Relevance::kNone}}};

// r = (rel - min + 1e-6) / (max - min) over each image, float32 [m].
at::Tensor normalised(const at::Tensor& relevance, const at::Tensor& image, int64_t num_images) {
  const auto extreme = [&](float start, c10::string_view reduce) {
    return at::scatter_reduce(at::full({num_images}, start, relevance.options()), 0, image, relevance, reduce)
        .index_select(0, image);
  };
  const at::Tensor low = extreme(kInfinity, "amin"), range = extreme(-kInfinity, "amax") - low;
  return at::where(range < kOffset, at::ones_like(range), (relevance - low + kOffset) / range.clamp_min(kOffset));
}

struct CdprunerState final : PruningPolicy::State {
  Relevance relevance = Relevance::kNone;
};

class Cdpruner final : public PlannedPolicy {
 public:
  explicit Cdpruner(const CdprunerOptions& options)
      : PlannedPolicy("cdpruner", options.common, false), options_(options) {
    check_amount("cdpruner", options.amount);
    if (options.sign && *options.sign != 1 && *options.sign != -1)
      throw Error("cdpruner: sign=" + std::to_string(*options.sign) + " is not 1 or -1");
  }

  std::string spec() const override {
    SpecWriter writer("cdpruner");
    writer.amount(options_.amount);
    for (const auto& [word, relevance] : kRelevances)
      if (options_.relevance == relevance) writer.add("relevance", word);
    if (options_.sign) writer.add("sign", std::to_string(*options_.sign));
    return writer.common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (options_.relevance == Relevance::kClip && !model.has_text_tower)
      throw Error("cdpruner: relevance=clip needs CLIP's text tower, which this model does not have");
    const auto pools = crop_pools(prompt);
    const std::vector<int64_t> kept = sum_per_image(num_kept(pools), pools, prompt.images.size());
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    return {{{Site::kProjectorOutput}, left, kept, left < prompt.num_image_tokens(false)}};
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout& prompt) const override {
    auto state = std::make_unique<CdprunerState>();
    state->relevance = options_.relevance.value_or(model.has_text_tower ? Relevance::kClip : Relevance::kEmbedding);
    if (state->relevance == Relevance::kEmbedding && query_text(prompt) == 0) state->relevance = Relevance::kNone;
    return state;
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State* state) const override {
    if (dynamic_cast<const CdprunerState&>(*state).relevance != Relevance::kClip) return {Tap{Tap::What::kHidden}};
    return {Tap{Tap::What::kHidden}, Tap{Tap::What::kClipImage}, Tap{Tap::What::kClipText}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override {
    const auto pools = crop_pools(*layout.prompt);
    const auto crops = crop_tokens(layout, pools, false);
    std::vector<int64_t> begin{0}, kept = num_kept(pools);
    for (size_t i = 0; i < crops.size(); ++i) {
      const auto size = static_cast<int64_t>(crops[i].ordinals.size());
      begin.push_back(begin.back() + size);
      kept[i] = std::min(kept[i], size);
    }
    const at::Tensor order = joined(crops, &CropTokens::ordinals, layout);
    const at::Tensor tokens = layout.image_tokens.index_select(0, order);
    const at::Tensor relevance = relevance_of(layout, signals, dynamic_cast<const CdprunerState&>(*state).relevance);
    const at::Tensor picks =
        ops::greedy_dpp(ops::gather_rows(signals[0], tokens), relevance.index_select(0, order), int64_tensor(begin),
                        int64_tensor(kept), layout.pinned.index_select(0, tokens));
    return {.kept = std::get<0>(order.index_select(0, picks).sort()), .scores = relevance};
  }

 private:
  std::vector<int64_t> num_kept(const std::vector<CropPool>& pools) const {
    return kept_per_crop({"cdpruner", options_.amount, common().min_per_image}, pools);
  }

  static int64_t query_text(const PromptLayout& prompt) {
    int64_t count = 0;
    for (const Segment& s : prompt.segments)
      if (s.kind == Segment::Kind::kText && s.example == prompt.query_example) count += s.end - s.begin;
    return count;
  }

  // r of each image token, float32 [m].
  at::Tensor relevance_of(const TokenLayout& layout, std::span<const at::Tensor> signals, Relevance kind) const {
    const PromptLayout& prompt = *layout.prompt;
    at::Tensor cosine;
    if (kind == Relevance::kNone)
      return at::ones({layout.num_image_tokens()}, layout.image_tokens.options().dtype(at::kFloat));
    if (kind == Relevance::kClip) {
      // CLIP's rows are all patches of the unpruned request.
      const at::Tensor rank =
          (prompt.kind == static_cast<int64_t>(Segment::Kind::kPatches)).to(at::kLong).cumsum(0) - 1;
      const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).clamp_min(0);
      cosine = ops::cosine_score(signals[1], signals[2].to(at::kFloat), rank.index_select(0, source)).mean(0);
    } else {
      const at::Tensor is_text =
          (layout.kind == static_cast<int64_t>(Segment::Kind::kText)) & (layout.example == prompt.query_example);
      const at::Tensor text = signals[0].index_select(0, indices_of(is_text, query_text(prompt)));
      cosine = ops::cosine_score(signals[0], text.to(at::kFloat).mean(0, true), layout.image_tokens)[0];
    }
    const int sign = options_.sign.value_or(kind == Relevance::kClip ? -1 : 1);
    return normalised(cosine * sign, layout.image.index_select(0, layout.image_tokens),
                      static_cast<int64_t>(prompt.images.size()));
  }

  CdprunerOptions options_;
};

}  // namespace

PolicyPtr make_cdpruner(const CdprunerOptions& options) {
  return std::make_shared<Cdpruner>(options);
}

PlannedPolicyPtr cdpruner_from(const OptionReader& reader) {
  CdprunerOptions options;
  options.amount = reader.amount();
  if (reader.text("relevance")) options.relevance = reader.choice("relevance", Relevance::kNone, kRelevances);
  if (reader.text("sign")) options.sign = static_cast<int>(reader.integer("sign", 1, -1, 1));
  options.common = reader.common();
  return std::make_shared<Cdpruner>(options);
}

}  // namespace espalier
