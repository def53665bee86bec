// SPDX-License-Identifier: Apache-2.0
// CDPruner (arXiv 2506.10967), as docs/specs/cdpruner.md reads it.
//   F     image tokens of `hidden` at the projector's output
//   E, T  kClipImage and kClipText (embedding: F and the mean input embedding of the query example's text)
//   c     mean cosine over the text segments
//   rel   sign · c
//   r     relevance
//   L     ops::greedy_dpp's kernel
//   t     num_kept of the crop
// Differences from the released code:
//   - relevance is normalised over the crops of one image and not over a batch; where it is the same everywhere, or
//     there is no text, all tokens count alike;
//   - the choice ends where nothing is left to gain and fills up by relevance (the code gives NaN); a token without a
//     direction adds nothing;
//   - pinned tokens are the first picks; positions are kept unless positions=compact says otherwise.
#include "espalier/policies/cdpruner.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scatter_reduce.h>
#include <ATen/ops/where.h>

#include <limits>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "pruning/built_in.h"
#include "pruning/determinantal.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = CdprunerOptions;
using Relevance = O::Relevance;

constexpr double kOffset = 1e-6;  // the least relevant token keeps a trace; smaller ranges count as none
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// r = (rel - min + 1e-6) / (max - min) over each image, float32 [m].
at::Tensor normalised(const at::Tensor& relevance, const at::Tensor& image, int64_t num_images) {
  const auto extreme = [&](float start, c10::string_view reduce) {
    return at::scatter_reduce(at::full({num_images}, start, relevance.options()), 0, image, relevance, reduce)
        .index_select(0, image);
  };
  const at::Tensor low = extreme(kInfinity, "amin"), range = extreme(-kInfinity, "amax") - low;
  return at::where(range < kOffset, at::ones_like(range), (relevance - low + kOffset) / range.clamp_min(kOffset));
}

// r of each image token, float32 [m].
at::Tensor relevance_of(const TokenLayout& layout, std::span<const at::Tensor> signals, Relevance kind, int sign) {
  const PromptLayout& prompt = *layout.prompt;
  at::Tensor cosine;
  if (kind == Relevance::kNone)
    return at::ones({layout.num_image_tokens()}, layout.image_tokens.options().dtype(at::kFloat));
  if (kind == Relevance::kClip) {
    // CLIP's rows are all patches of the unpruned request.
    const at::Tensor rank = (prompt.kind == static_cast<int64_t>(Segment::Kind::kPatches)).to(at::kLong).cumsum(0) - 1;
    const at::Tensor source = layout.source_index.index_select(0, layout.image_tokens).clamp_min(0);
    cosine = ops::cosine_score(signals[1], signals[2].to(at::kFloat), rank.index_select(0, source)).mean(0);
  } else {
    const at::Tensor text =
        signals[0].index_select(0, text_tokens_at(layout, text_of_example(prompt, prompt.query_example)));
    cosine = ops::cosine_score(signals[0], text.to(at::kFloat).mean(0, true), layout.image_tokens)[0];
  }
  return normalised(cosine * sign, layout.image.index_select(0, layout.image_tokens),
                    static_cast<int64_t>(prompt.images.size()));
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  if (o.relevance == Relevance::kClip && !model.has_text_tower)
    throw Error("cdpruner: relevance=clip needs CLIP's text tower, which this model does not have");
  Relevance kind = o.relevance.value_or(model.has_text_tower ? Relevance::kClip : Relevance::kEmbedding);
  if (kind == Relevance::kEmbedding && text_of_example(prompt, prompt.query_example).empty()) kind = Relevance::kNone;
  const int sign = o.sign.value_or(kind == Relevance::kClip ? -1 : 1);
  return {{.at = {Site::kProjectorOutput},
           .scope = kind == Relevance::kNone ? Scope::kCrop : Scope::kRequest,
           .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount},
           .needs = [kind](const TokenLayout&) -> std::vector<Signal> {
             if (kind != Relevance::kClip) return {Tap{Tap::What::kHidden}};
             return {Tap{Tap::What::kHidden}, Tap{Tap::What::kClipImage}, Tap{Tap::What::kClipText}};
           },
           .decide =
               [kind, sign](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                 const at::Tensor relevance = relevance_of(layout, signals, kind, sign);
                 return Verdict{.scores = relevance,
                                .choose = determinantal_choice(signals[0], layout.image_tokens, relevance)};
               }}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "cdpruner",
      .options = {keep_ratio(&O::amount),
                  num_kept(&O::amount),
                  {"relevance",
                   &O::relevance,
                   {{"clip", Relevance::kClip}, {"embedding", Relevance::kEmbedding}, {"none", Relevance::kNone}},
                   "clip; embedding, against the query's text; none; clip where there is a text tower, else embedding"},
                  {"sign", &O::sign, "of the relevance, 1 or -1; -1 for clip, else 1"}},
      .steps = steps,
      .check = [](const O& o) {
        if (o.sign && *o.sign != 1 && *o.sign != -1)
          throw Error("cdpruner: sign=" + std::to_string(*o.sign) + " is not 1 or -1");
      }};
  return method;
}

}  // namespace

PolicyPtr make_cdpruner(const CdprunerOptions& options) {
  return make(method(), options);
}

PolicyRow cdpruner_row() {
  return row(method(), {.paper = "arXiv 2506.10967",
                        .summary = "each crop keeps tokens that differ and matter to the question",
                        .sites = {Site::kProjectorOutput},
                        .needs = "projected tokens and embeddings, or CLIP's",
                        .refusal = any_model,
                        .examples = {{"cdpruner:keep_ratio=1/4"}, {"cdpruner:keep_ratio=1/5,relevance=none"}}});
}

}  // namespace espalier
