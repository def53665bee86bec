// SPDX-License-Identifier: Apache-2.0
// PLPHP: "PLPHP: Per-Layer Per-Head Vision Token Pruning for Efficient Large Vision-Language Models" (arXiv
// 2502.14504), as docs/specs/plphp.md reads it; there is no released code. Symbols: A -> the last prompt row's
// attention to image tokens, gamma_l -> mass (mean over heads of the row's sum), r -> keep_ratio, Delta r -> delta,
// rho_l -> the rate of a layer, k_l -> num_kept, the same for all heads of the layer. Layers 0-based, all of them. The
// constants could not be checked against the paper. Readings of our own: thresholds are strict; all images compete in
// one pool; query heads that share a KV head are averaged, and the choice is made per KV head; pinned tokens and floors
// are in every head's list, and raise k_l where the rate is too low for them. The trace's scores are the mean over
// heads: their sum is gamma_l.
#include "espalier/policies/plphp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

constexpr int64_t kLargestDenominator = 1'000'000'000;  // so that the sum of two fractions is exact in 64 bits

struct PlphpState final : PruningPolicy::State {
  int64_t num_kv_heads = 0;
};

void check_fraction(const char* name, Fraction f) {
  if (f.den <= 0 || f.num < 0 || f.num > f.den || f.den > kLargestDenominator)
    throw Error("plphp: " + std::string(name) + "=" + to_string(f) +
                " is not from 0 to 1 with a denominator of at most " + std::to_string(kLargestDenominator));
}

// The same values once for each head.
std::vector<int64_t> repeated(const std::vector<int64_t>& values, int64_t times) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < times; ++i) all.insert(all.end(), values.begin(), values.end());
  return all;
}

class Plphp final : public PlannedPolicy {
 public:
  explicit Plphp(const PlphpOptions& options)
      : PlannedPolicy("plphp", options.common, options.row_breaks_compete), options_(options) {
    check_fraction("keep_ratio", options.keep_ratio);
    check_fraction("delta", options.delta);
    if (options.keep_ratio.num == 0) throw Error("plphp: keep_ratio=0 is not above 0");
    if (!(options.beta >= 0.0 && options.beta <= options.alpha && options.alpha <= 1.0))
      throw Error("plphp: alpha and beta must hold 0 <= beta <= alpha <= 1");
  }

  std::string spec() const override {
    const PlphpOptions defaults;
    return SpecWriter("plphp")
        .add("keep_ratio", options_.keep_ratio, defaults.keep_ratio)
        .add("delta", options_.delta, defaults.delta)
        .add("alpha", options_.alpha, defaults.alpha)
        .add("beta", options_.beta, defaults.beta)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    const bool has_images = prompt.num_image_tokens(row_breaks_compete()) > 0;
    std::vector<PlannedPoint> points;
    for (int layer = 0; layer < model.num_layers; ++layer)
      points.push_back({{Site::kCache, layer}, {}, {}, has_images});
    return points;
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<PlphpState>();
    state->num_kv_heads = model.num_kv_heads;
    return state;
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout&, const State*) const override {
    return {AttentionProbe{.layer = point.layer, .heads = AttentionProbe::Heads::kEach}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override {
    const int64_t heads = dynamic_cast<const PlphpState&>(*state).num_kv_heads, m = layout.num_image_tokens();
    const at::Tensor scores = signals[0].view({heads, -1, m}).mean(1);  // [g, m]
    const double mass = signals[0].sum(1).mean().item<double>();        // the number kept depends on it: waits
    std::vector<int64_t> stay = protected_per_image(*layout.prompt, row_breaks_compete(), common().min_per_image);
    int64_t kept = num_kept(mass, layout.prompt->num_image_tokens(row_breaks_compete()));
    kept = std::min(std::max(kept, std::accumulate(stay.begin(), stay.end(), int64_t{0})), m);
    std::vector<int64_t> sizes;
    if (common().min_per_image > 0) {
      sizes = repeated(tokens_per_image(layout, row_breaks_compete()), heads);
      stay = repeated(stay, heads);
    } else {
      stay.clear();
    }
    const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens).repeat({heads});
    const at::Tensor best =
        keep_best(scores.flatten(), pinned, {repeated({m}, heads), repeated({kept}, heads)}, stay, sizes);
    const at::Tensor head_begin = at::arange(heads, best.options()).mul(m).unsqueeze(1);
    return {.kept = best.view({heads, kept}) - head_begin,
            .scores = signals[0].mean(0),
            .notes = {{"gamma", signals[0].sum(1).mean().unsqueeze(0)}}};
  }

 private:
  // Of a pool of this size, by a layer that gives this much of its attention to it.
  int64_t num_kept(double mass, int64_t pool) const {
    const auto [r, r_den] = options_.keep_ratio;
    const auto [step, step_den] = options_.delta;
    const int64_t sign = mass > options_.alpha ? 1 : mass < options_.beta ? -1 : 0;
    const int64_t den = r_den * step_den, num = std::clamp<int64_t>(r * step_den + sign * step * r_den, 0, den);
    return std::clamp<int64_t>(rounded_share({num, den}, pool, Rounding::kFloor), std::min<int64_t>(1, pool), pool);
  }

  PlphpOptions options_;
};

}  // namespace

PolicyPtr make_plphp(const PlphpOptions& options) {
  return std::make_shared<Plphp>(options);
}

PlannedPolicyPtr plphp_from(const OptionReader& reader) {
  PlphpOptions options;
  options.keep_ratio = reader.fraction("keep_ratio", options.keep_ratio);
  options.delta = reader.fraction("delta", options.delta);
  options.alpha = reader.number("alpha", options.alpha);
  options.beta = reader.number("beta", options.beta);
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Plphp>(options);
}

}  // namespace espalier
