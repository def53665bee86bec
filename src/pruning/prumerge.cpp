// SPDX-License-Identifier: Apache-2.0
// LLaVA-PruMerge: "Adaptive Token Reduction for Efficient Large Multimodal Models" (arXiv 2403.15388), as
// docs/specs/prumerge.md reads it. Symbols: a -> attention (class row, heads as one vector), K -> keys of the same
// layer, x
// -> kVisionOutput, F -> fence, O -> outliers, S -> chosen, NN(i) -> the neighbours of i, y -> merged, e -> extra
// token. Differences from the released code: exactly |O| stay and at least one; survivors stand in the order of the
// picture; neighbours come from all others, as released (the paper: from the pruned ones); each crop has a fence of its
// own, and crops enter the decoder one behind the other, without row breaks; positions are those of the patches that
// survivors stand at. Which patches stay is decided on the host: a GPU is waited for once.
#include "espalier/policies/prumerge.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

using Places = std::vector<int64_t>;  // within a crop, ascending

// The q-quantile of ascending values, between two of them linearly.
double quantile(const std::vector<double>& ascending, double q) {
  const double at = q * static_cast<double>(ascending.size() - 1);
  const auto below = static_cast<size_t>(at);
  const double above = ascending[std::min(below + 1, ascending.size() - 1)];
  return ascending[below] + (at - static_cast<double>(below)) * (above - ascending[below]);
}

// Places by falling attention, lower places first among equals; pinned ones before all.
Places ranked(const std::vector<double>& attention, const std::vector<bool>& pinned) {
  Places order(attention.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(
      order, [&](int64_t i, int64_t j) { return pinned[i] != pinned[j] ? pinned[i] : attention[i] > attention[j]; });
  return order;
}

// O.
int64_t count_outliers(const std::vector<double>& attention) {
  std::vector<double> ascending = attention;
  std::ranges::sort(ascending);
  const double q1 = quantile(ascending, 0.25), q3 = quantile(ascending, 0.75), fence = q3 + 1.5 * (q3 - q1);
  return std::ranges::count_if(attention, [&](double a) { return a > fence; });
}

// S with as many as stand out, at least one, and the grid of PruMerge+.
Places adaptive_choice(const std::vector<double>& attention, const std::vector<bool>& pinned, bool plus) {
  const auto n = static_cast<int64_t>(attention.size());
  const int64_t outliers = std::max<int64_t>(1, count_outliers(attention));
  std::vector<bool> chosen = pinned;
  const Places order = ranked(attention, std::vector<bool>(attention.size(), false));
  for (int64_t i = 0; i < outliers; ++i) chosen[order[i]] = true;
  const int64_t stride = std::max<int64_t>(1, n / outliers / 3);
  for (int64_t i = 0; plus && i < n - 1; i += stride) chosen[i] = true;
  Places places;
  for (int64_t i = 0; i < n; ++i)
    if (chosen[i]) places.push_back(i);
  return places;
}

// S with `number` of them: the best; with PruMerge+ the best half, and the rest evenly from what remains.
Places fixed_choice(const std::vector<double>& attention, const std::vector<bool>& pinned, int64_t number, bool plus) {
  const int64_t pins = std::ranges::count(pinned, true);
  const int64_t best = plus ? std::max(number / 2, std::min(pins, number)) : number;
  const Places order = ranked(attention, pinned);
  Places places(order.begin(), order.begin() + best), rest(order.begin() + best, order.end());
  std::ranges::sort(rest);
  const int64_t even = number - best;
  for (int64_t i = 0; i < even; ++i) places.push_back(rest[i * std::ssize(rest) / even]);
  std::ranges::sort(places);
  return places;
}

// y of the chosen rows, and e: float32 [S, d] and [1, d]. x [n, d], key [n, d_k], attention [n], all of one crop.
struct Merged {
  at::Tensor survivors, extra;
};
Merged merge(const at::Tensor& x, const at::Tensor& key, const at::Tensor& attention, const at::Tensor& chosen,
             int64_t neighbours) {
  const int64_t n = x.size(0);
  const at::Tensor weights_of_rest = attention.index_fill(0, chosen, 0.0).unsqueeze(0);
  Merged merged{x.index_select(0, chosen), at::matmul(weights_of_rest, x)};
  const int64_t k = std::min(neighbours, n - 1);
  if (k == 0 || chosen.size(0) == 0) return merged;
  const at::Tensor unit = key / key.square().sum(1, true).sqrt().clamp_min(1e-12);
  const at::Tensor others = at::arange(n, chosen.options()).unsqueeze(0) != chosen.unsqueeze(1);  // [S, n]
  const at::Tensor cosine = at::matmul(unit.index_select(0, chosen), unit.t())
                                .masked_fill(others.logical_not(), -std::numeric_limits<float>::infinity());
  const at::Tensor nearest = cosine.argsort(/*stable=*/true, 1, /*descending=*/true).slice(1, 0, k);
  const at::Tensor weights = at::zeros({chosen.size(0), n}, x.options())
                                 .scatter(1, nearest, attention.index_select(0, nearest.flatten()).view_as(nearest));
  merged.survivors = merged.survivors + at::matmul(weights, x);
  return merged;
}

class Prumerge final : public PlannedPolicy {
 public:
  explicit Prumerge(const PrumergeOptions& options)
      : PlannedPolicy(name_of(options), options.common, false), options_(options) {
    if (!is_adaptive()) check_amount(name(), options.amount);
    if (options.neighbours < 0)
      throw Error(std::string(name()) + ": neighbours=" + std::to_string(options.neighbours) + " is below 0");
  }

  std::string spec() const override {
    const PrumergeOptions defaults;
    SpecWriter writer(name());
    writer.amount(options_.amount)
        .add("neighbours", options_.neighbours, defaults.neighbours)
        .add("extra_token", options_.extra_token, defaults.extra_token);
    if (options_.layer_attention) writer.add("layer_attention", std::to_string(*options_.layer_attention));
    return writer.common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (!model.has_class_token) throw Error(std::string(name()) + ": the vision tower has no class token");
    const int layer = layer_of(model);
    if (layer < 0 || layer >= model.vision_layers)
      throw Error(std::string(name()) + ": vision layer " + std::to_string(layer) + ", but the tower has " +
                  std::to_string(model.vision_layers));
    const auto pools = crop_pools(prompt);
    if (is_adaptive()) return {{{Site::kVisionOutput}, {}, {}, !pools.empty()}};
    const std::vector<int64_t> budgets = budgets_of(pools);
    for (size_t i = 0; i < pools.size(); ++i)
      if (patches_of(budgets[i]) < pools[i].pinned)
        throw Error(std::string(name()) + ": " + std::to_string(budgets[i]) + " tokens of a crop leave no room for " +
                    std::to_string(pools[i].pinned) + " pinned ones" + (options_.extra_token ? " and the rest" : ""));
    const std::vector<int64_t> left = sum_per_image(budgets, pools, prompt.images.size());
    return {{{Site::kVisionOutput}, std::accumulate(left.begin(), left.end(), int64_t{0}), left, !pools.empty()}};
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<PrumergeState>();
    state->layer = layer_of(model);
    return state;
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State* state) const override {
    const int layer = dynamic_cast<const PrumergeState&>(*state).layer;
    return {
        AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass, .heads = AttentionProbe::Heads::kJoint},
        Tap{Tap::What::kVisionKey, layer}, Tap{Tap::What::kVisionOutput}};
  }

  Verdict decide(const ActPoint& point, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override;

 private:
  struct PrumergeState final : State {
    int layer = 0;
  };

  static std::string_view name_of(const PrumergeOptions& options) { return options.plus ? "prumerge+" : "prumerge"; }
  std::string_view name() const { return name_of(options_); }
  bool is_adaptive() const { return !options_.amount.keep_ratio && !options_.amount.num_kept; }
  int layer_of(const ModelFacts& model) const { return options_.layer_attention.value_or(model.vision_layers - 1); }
  std::vector<int64_t> budgets_of(const std::vector<CropPool>& pools) const {
    return kept_per_crop({name(), options_.amount, common().min_per_image}, pools);
  }
  int64_t patches_of(int64_t budget) const { return options_.extra_token ? std::max<int64_t>(0, budget - 1) : budget; }

  std::vector<Places> choose(const std::vector<CropPool>& pools, const std::vector<CropTokens>& crops,
                             const at::Tensor& attention, const at::Tensor& pinned) const;

  PrumergeOptions options_;
};

// S of each crop. attention float32 [patches], pinned bool [m], both on the CPU.
std::vector<Places> Prumerge::choose(const std::vector<CropPool>& pools, const std::vector<CropTokens>& crops,
                                     const at::Tensor& attention, const at::Tensor& pinned) const {
  std::vector<std::vector<double>> looks(crops.size());
  std::vector<std::vector<bool>> pins(crops.size());
  for (size_t i = 0; i < crops.size(); ++i)
    for (size_t j = 0; j < crops[i].patches.size(); ++j) {
      looks[i].push_back(attention.const_data_ptr<float>()[crops[i].patches[j]]);
      pins[i].push_back(pinned.const_data_ptr<bool>()[crops[i].ordinals[j]]);
    }
  std::vector<Places> chosen;
  if (!is_adaptive()) {
    const std::vector<int64_t> budgets = budgets_of(pools);
    for (size_t i = 0; i < crops.size(); ++i)
      chosen.push_back(fixed_choice(looks[i], pins[i], patches_of(budgets[i]), options_.plus));
    return chosen;
  }
  std::vector<int64_t> numbers;
  for (size_t i = 0; i < crops.size(); ++i) {
    chosen.push_back(looks[i].empty() ? Places{} : adaptive_choice(looks[i], pins[i], options_.plus));
    numbers.push_back(std::ssize(chosen[i]));
  }
  raise_to_floor(numbers, pools, common().min_per_image);
  for (size_t i = 0; i < crops.size(); ++i) {  // the best of what was not chosen fill up to the floor
    if (numbers[i] == std::ssize(chosen[i])) continue;
    std::vector<bool> first(looks[i].size(), false);
    for (const int64_t place : chosen[i]) first[place] = true;
    const Places order = ranked(looks[i], first);
    chosen[i].assign(order.begin(), order.begin() + numbers[i]);
    std::ranges::sort(chosen[i]);
  }
  return chosen;
}

Verdict Prumerge::decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                         State*) const {
  const auto pools = crop_pools(*layout.prompt);
  const auto crops = crop_tokens(layout, pools, false);
  const at::Tensor pinned = layout.pinned.index_select(0, layout.image_tokens).cpu().contiguous();
  const at::Tensor attention = signals[0].to(at::kFloat);
  const std::vector<Places> chosen = choose(pools, crops, attention.cpu().contiguous(), pinned);
  const std::vector<int64_t> budgets = is_adaptive() ? std::vector<int64_t>(pools.size(), 1) : budgets_of(pools);
  const auto on_device = [&](const std::vector<int64_t>& v) { return int64_tensor(v).to(attention.device()); };
  std::vector<at::Tensor> survivors, extras;
  std::vector<int64_t> places, last;
  for (size_t i = 0; i < crops.size(); ++i) {
    if (crops[i].patches.empty() || budgets[i] == 0) continue;
    const at::Tensor patches = on_device(crops[i].patches);
    const Merged merged =
        merge(signals[2].index_select(0, patches).to(at::kFloat), signals[1].index_select(0, patches).to(at::kFloat),
              attention.index_select(0, patches), on_device(chosen[i]), options_.neighbours);
    survivors.push_back(merged.survivors);
    for (const int64_t place : chosen[i]) places.push_back(crops[i].ordinals[place]);
    extras.push_back(merged.extra);
    last.push_back(crops[i].ordinals.back());
  }
  Verdict verdict{.kept = on_device({}), .added = {}, .crop_by_crop = true};
  if (survivors.empty()) return verdict;
  verdict.added.push_back({NewTokens::Where::kInPlace, at::cat(survivors), on_device(places), on_device(places)});
  if (options_.extra_token)
    verdict.added.push_back({NewTokens::Where::kBehind, at::cat(extras),
                             on_device(std::vector<int64_t>(last.size(), -1)), on_device(last)});
  return verdict;
}

PlannedPolicyPtr prumerge_with(const OptionReader& reader, bool plus) {
  PrumergeOptions options;
  options.plus = plus;
  options.amount = reader.amount();
  options.neighbours = reader.integer("neighbours", options.neighbours, 0);
  options.extra_token = reader.boolean("extra_token", options.extra_token);
  if (reader.text("layer_attention"))
    options.layer_attention = static_cast<int>(reader.integer("layer_attention", 0, 0, 1 << 20));
  options.common = reader.common();
  return std::make_shared<Prumerge>(options);
}

}  // namespace

PolicyPtr make_prumerge(const PrumergeOptions& options) {
  return std::make_shared<Prumerge>(options);
}

PlannedPolicyPtr prumerge_from(const OptionReader& reader) {
  return prumerge_with(reader, false);
}

PlannedPolicyPtr prumerge_plus_from(const OptionReader& reader) {
  return prumerge_with(reader, true);
}

}  // namespace espalier
