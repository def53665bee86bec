// SPDX-License-Identifier: Apache-2.0
// DART: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (arXiv 2502.11494),
// as docs/specs/dart.md reads it.
//   K    layer, 0-based: layers 0 … K-1 run in full
//   hid  kFinalNorm of the state entering `layer`
//   key  kKey of layer-1 after RoPE
//   l_i  key_norm: L1 over KV heads (repeating them for query heads scales all tokens alike)
//   M    the budget B of an image
//   t    the share of a pivot
//   C    candidates
// Differences from the released code:
//   - the budget is met exactly: q = B - image pivots, pivot i takes floor(q/P) and one more while i < q mod P (the
//   code
//     keeps 4 + 8·floor(M/8));
//   - pivots vote in the order image by descending l, then text by descending l (the code iterates a set);
//   - running out of candidates cannot happen;
//   - each image has its own budget, pivots and candidates, text pivots are shared;
//   - pinned tokens stay beside the pivots, take part in neither, and count.
#include "espalier/policies/dart.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "espalier/ops.h"
#include "pruning/built_in.h"
#include "pruning/prompt_text.h"

namespace espalier {

namespace {

using O = DartOptions;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The `number` largest of scores [begin, end), best first, as indices into scores.
at::Tensor best_first(const at::Tensor& scores, int64_t begin, int64_t end, int64_t number) {
  const at::Tensor order = scores.slice(0, begin, end).argsort(/*stable=*/true, 0, /*descending=*/true);
  return order.slice(0, 0, number) + begin;
}

struct Voting {
  at::Tensor pivots;                        // indices into the sequence, those of the images first
  std::vector<std::vector<int64_t>> order;  // for each image: rows of `pivots` in the order they vote
  std::vector<int64_t> budget;              // for each image: what its pivots may take
  at::Tensor taken;                         // bool [m]: pinned tokens and image pivots
};

Voting choose_pivots(const O& o, const TokenLayout& layout, const at::Tensor& keys, const Pools& images) {
  const at::Tensor norm = keys.flatten(1).to(at::kFloat).abs().sum(1);
  Voting voting;
  voting.taken = images.always.clone();
  const at::Tensor of_image = norm.index_select(0, layout.image_tokens).masked_fill(voting.taken, -1);
  std::vector<at::Tensor> pivots;  // ordinals, image by image
  int64_t num_pivots = 0;
  for (size_t i = 0; i + 1 < images.begin.size(); ++i) {
    const int64_t pinned = images.size(i) > 0 ? layout.prompt->pinned_per_image[i] : 0;
    const int64_t budget = images.num_kept[i] - pinned;
    const int64_t own = std::clamp<int64_t>(budget, 0, o.image_pivots);
    pivots.push_back(best_first(of_image, images.begin[i], images.begin[i + 1], own));
    voting.order.emplace_back(own);
    std::iota(voting.order.back().begin(), voting.order.back().end(), num_pivots);
    voting.budget.push_back(budget - own);
    num_pivots += own;
  }
  const at::Tensor ordinals = at::cat(pivots);
  voting.taken.index_fill_(0, ordinals, true);
  at::Tensor text_pivots = ordinals.slice(0, 0, 0);
  int64_t shared = 0;
  if (o.text_pivots > 0) {
    const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
    shared = std::min<int64_t>(o.text_pivots, text.size(0));
    text_pivots = text.index_select(0, best_first(norm.index_select(0, text), 0, text.size(0), shared));
  }
  voting.pivots = at::cat({layout.image_tokens.index_select(0, ordinals), text_pivots});
  for (std::vector<int64_t>& order : voting.order)
    for (int64_t i = 0; i < shared; ++i) order.push_back(num_pivots + i);
  return voting;
}

// All images vote at once: in round r, pivot r of each image takes its share of the image's candidates.
Choice vote(const O& o, const TokenLayout& layout, std::span<const at::Tensor> signals, const Pools& images) {
  Voting voting = choose_pivots(o, layout, signals[1], images);
  size_t rounds = 0;
  for (const std::vector<int64_t>& order : voting.order) rounds = std::max(rounds, order.size());
  const at::Tensor hidden = signals[0].to(at::kFloat);
  at::Tensor cosine;  // [pivots, m]
  if (rounds > 0) cosine = ops::cosine_score(hidden, hidden.index_select(0, voting.pivots), layout.image_tokens);
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens), starts = int64_tensor(images.begin);
  for (size_t round = 0; round < rounds; ++round) {
    std::vector<int64_t> pivot, share;
    for (size_t i = 0; i < voting.order.size(); ++i) {
      const auto voters = std::ssize(voting.order[i]), r = static_cast<int64_t>(round);
      pivot.push_back(r < voters ? voting.order[i][round] : 0);
      share.push_back(r < voters ? voting.budget[i] / voters + (r < voting.budget[i] % voters ? 1 : 0) : 0);
    }
    const at::Tensor row = int64_tensor(pivot).to(image.device()).index_select(0, image);
    const at::Tensor likeness = cosine.gather(0, row.unsqueeze(0)).squeeze(0);
    const at::Tensor picks =
        ops::topk_sorted((-likeness).masked_fill(voting.taken, -kInfinity), starts, int64_tensor(share));
    voting.taken.index_fill_(0, picks, true);
  }
  return {indices_of(voting.taken, std::accumulate(images.num_kept.begin(), images.num_kept.end(), int64_t{0}))};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  if (!acts_before("dart", o.layer, model)) return {};
  if (o.image_pivots == 0 && text_behind_last_image(prompt).empty())
    throw Error("dart: image_pivots=0, but no text after the last image can be a pivot");
  return {{.at = {Site::kBeforeLayer, o.layer},
           .scope = o.text_pivots == 0 ? Scope::kPrefix : Scope::kRequest,
           .budget = {.pool = Budget::Pool::kImage, .amount = o.amount, .at_least_one = true},
           .needs = [layer = o.layer](const TokenLayout&) -> std::vector<Signal> {
             return {Tap{Tap::What::kFinalNorm}, Tap{Tap::What::kKey, layer - 1}};
           },
           .decide =
               [o](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                 const std::vector<at::Tensor> own(signals.begin(), signals.end());
                 return Verdict{
                     .choose = [o, layout, own](const Pools& images) { return vote(o, layout, own, images); }};
               },
           .is_nested = false}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "dart",
      .options = {keep_ratio(&O::amount),
                  num_kept(&O::amount, "number that stays of each image; this or keep_ratio"),
                  {"layer", &O::layer,
                   "acts before this layer, on the state that enters it and the keys of the one before", at_least(1)},
                  {"image_pivots", &O::image_pivots, "tokens with the largest keys, of each image; they stay",
                   at_least(0)},
                  {"text_pivots", &O::text_pivots,
                   "of the text after the last image, shared by all images; they only vote", at_least(0)},
                  row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = [](const O& o) {
        if (o.image_pivots + o.text_pivots == 0) throw Error("dart: image_pivots and text_pivots are both 0");
      }};
  return method;
}

}  // namespace

PolicyPtr make_dart(const DartOptions& options) {
  return make(method(), options);
}

PolicyRow dart_row() {
  return row(method(), {.paper = "arXiv 2502.11494",
                        .summary = "a few pivots stay, and the tokens least like them",
                        .sites = {Site::kBeforeLayer},
                        .needs = "the state before one layer and the keys of the one before",
                        .refusal = needs_layers<2>,
                        .examples = {{"dart:keep_ratio=1/3"},
                                     {"dart:num_kept=2,layer=5,text_pivots=1"},
                                     {"dart:keep_ratio=1/2,text_pivots=0"}}});
}

}  // namespace espalier
