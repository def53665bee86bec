// SPDX-License-Identifier: Apache-2.0
// PLPHP: "PLPHP: Per-Layer Per-Head Vision Token Pruning for Efficient Large Vision-Language Models" (arXiv
// 2502.14504), as docs/specs/plphp.md reads it; there is no released code.
//   A        the last prompt row's attention to image tokens
//   gamma_l  mass: mean over heads of the row's sum
//   r        keep_ratio
//   Delta r  delta
//   rho_l    the rate of a layer
//   k_l      num_kept, the same for all heads of the layer
// Layers 0-based, all of them. The constants could not be checked against the paper. Readings of our own:
//   - thresholds are strict; all images compete in one pool;
//   - query heads that share a KV head are averaged, and the choice is made per KV head;
//   - pinned tokens and floors are in every head's list, and raise k_l where the rate is too low for them;
//   - the trace's scores are the mean over heads: their sum is gamma_l;
//   - with `every` both levels are decided again by the newest token's row, over all rows in memory.
#include "espalier/policies/plphp.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"

namespace espalier {

namespace {

using O = PlphpOptions;

constexpr int64_t kLargestDenominator = 1'000'000'000;  // so that the sum of two fractions is exact in 64 bits

// Of a pool of this size, by a layer that gives this much of its attention to it.
int64_t num_kept(const O& o, double mass, int64_t pool) {
  const auto [r, r_den] = o.keep_ratio;
  const auto [step, step_den] = o.delta;
  const int64_t sign = mass > o.alpha ? 1 : mass < o.beta ? -1 : 0;
  const int64_t den = r_den * step_den, num = std::clamp<int64_t>(r * step_den + sign * step * r_den, 0, den);
  return std::clamp<int64_t>(rounded_share({num, den}, pool, Rounding::kFloor), std::min<int64_t>(1, pool), pool);
}

Verdict rank_heads(const O& o, int64_t kv_heads, int64_t pool, const at::Tensor& attention) {
  const at::Tensor mass = attention.sum(1).mean();  // the number kept depends on it: waits
  return {.scores = attention.view({kv_heads, -1, attention.size(1)}).mean(1),
          .notes = {{"gamma", mass.unsqueeze(0)}},
          .num_kept = {num_kept(o, mass.item<double>(), pool)}};
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int64_t pool = prompt.num_image_tokens(o.row_breaks_compete);
  std::vector<Step> steps;
  for (int layer = 0; layer < model.num_layers; ++layer)
    steps.push_back(
        {.at = {Site::kCache, layer},
         .budget = {.is_adaptive = true},
         .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
           return {AttentionProbe{.layer = layer, .heads = AttentionProbe::Heads::kEach}};
         },
         .decide = [o, pool, kv_heads = model.num_kv_heads](
                       const TokenLayout&,
                       std::span<const at::Tensor> signals) { return rank_heads(o, kv_heads, pool, signals[0]); },
         .every = o.every,
         .revives = o.every > 0 && o.revives});
  return steps;
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "plphp",
      .options =
          {{"keep_ratio", &O::keep_ratio, "part of all image tokens that a layer's cache keeps, rounded down", kShare},
           {"delta", &O::delta, "more where attention on images is above alpha, less where below beta", kShare},
           {"alpha", &O::alpha, "attention mass of the last row on images, mean over heads", kShare},
           {"beta", &O::beta, "the same", kShare},
           {"every", &O::every, "with each of so many generated tokens again; 0: once, behind prefill", at_least(0)},
           {"revival", &O::revives, kYesNo, "with every: what leaves stays in memory and may return; no: it is freed"},
           row_breaks(&O::row_breaks_compete)},
      .steps = steps,
      .check = [](const O& o) {
        for (const Fraction f : {o.keep_ratio, o.delta})
          if (f.den > kLargestDenominator)
            throw Error("plphp: the denominator of " + to_string(f) + " is above " +
                        std::to_string(kLargestDenominator));
        if (o.keep_ratio.num == 0) throw Error("plphp: keep_ratio=0 is not above 0");
        if (o.every == 0 && !o.revives) throw Error("plphp: revival=no is about every, which is 0");
        if (o.beta > o.alpha) throw Error("plphp: alpha and beta must hold 0 <= beta <= alpha <= 1");
      }};
  return method;
}

}  // namespace

PolicyPtr make_plphp(const PlphpOptions& options) {
  return make(method(), options);
}

PolicyRow plphp_row() {
  return row(method(), {.paper = "arXiv 2502.14504",
                        .summary = "each layer's cache keeps image tokens at its own rate, each KV head its own",
                        .sites = {Site::kCache},
                        .needs = "attention of the last row in every layer; no sliding window",
                        .refusal = needs_no_window,
                        .examples = {{"plphp"}, {"plphp:keep_ratio=1/2,alpha=0.02,beta=0.01,min_per_image=3"}}});
}

}  // namespace espalier
