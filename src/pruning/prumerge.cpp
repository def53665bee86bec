// SPDX-License-Identifier: Apache-2.0
// LLaVA-PruMerge: "Adaptive Token Reduction for Efficient Large Multimodal Models" (arXiv 2403.15388), as
// docs/specs/prumerge.md reads it.
//   a      attention: class row, heads as one vector
//   K      keys of the same layer
//   x      kVisionOutput
//   F, O   fence, outliers
//   S      chosen
//   NN(i)  the neighbours of i
//   y, e   merged, extra token
// Differences from the released code:
//   - exactly |O| stay and at least one; survivors stand in the order of the picture;
//   - neighbours come from all others, as released (the paper: from the pruned ones);
//   - each crop has a fence of its own, and crops enter the decoder one behind the other, without row breaks;
//   - positions are those of the patches that survivors stand at.
// Which patches stay is decided on the host: a GPU is waited for once.
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

namespace espalier {

namespace {

using O = PrumergeOptions;
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

std::string_view name_of(const O& o) {
  return o.plus ? "prumerge+" : "prumerge";
}

bool is_adaptive(const O& o) {
  return !o.amount.keep_ratio && !o.amount.num_kept;
}

int64_t patches_of(const O& o, int64_t budget) {
  return o.extra_token ? std::max<int64_t>(0, budget - 1) : budget;
}

// attention [patches], key [patches, d_k], output [patches, d_v].
struct Tower {
  at::Tensor attention, key, output;
};

// S of a crop with `number` of them (adaptive: of the outliers, raised to it). attention float32, pinned bool, host.
Places choose(const O& o, const at::Tensor& attention, const at::Tensor& pinned, int64_t number) {
  const std::vector<double> looks(attention.const_data_ptr<float>(),
                                  attention.const_data_ptr<float>() + attention.numel());
  const std::vector<bool> pins(pinned.const_data_ptr<bool>(), pinned.const_data_ptr<bool>() + pinned.numel());
  if (!is_adaptive(o)) return fixed_choice(looks, pins, patches_of(o, number), o.plus);
  Places chosen = adaptive_choice(looks, pins, o.plus);
  if (number <= std::ssize(chosen)) return chosen;
  std::vector<bool> first(looks.size(), false);  // the best of what was not chosen fill up to the floor
  for (const int64_t place : chosen) first[static_cast<size_t>(place)] = true;
  const Places order = ranked(looks, first);
  chosen.assign(order.begin(), order.begin() + number);
  std::ranges::sort(chosen);
  return chosen;
}

// How many stand out in each crop that is there: what floors add to.
std::vector<int64_t> outliers_of(const O& o, const Tower& tower, const TokenLayout& layout) {
  const Pools crops = pools_of(layout, Budget::Pool::kCrop);
  const at::Tensor looks = tower.attention.index_select(0, crops.tokens).cpu().contiguous();
  const at::Tensor pinned =
      layout.pinned.index_select(0, layout.image_tokens.index_select(0, crops.tokens)).cpu().contiguous();
  std::vector<int64_t> numbers;
  for (size_t i = 0; i + 1 < crops.begin.size(); ++i) {
    const auto own = [&, i](const at::Tensor& t) { return t.slice(0, crops.begin[i], crops.begin[i + 1]); };
    numbers.push_back(crops.size(i) == 0 ? 0 : std::ssize(choose(o, own(looks), own(pinned), 0)));
  }
  return numbers;
}

Choice merge_crops(const O& o, const Tower& tower, const Pools& crops) {
  const auto on_device = [&](const std::vector<int64_t>& v) { return int64_tensor(v).to(crops.tokens.device()); };
  const at::Tensor looks = tower.attention.index_select(0, crops.tokens).cpu().contiguous();
  const at::Tensor pinned = crops.always.cpu().contiguous();
  std::vector<at::Tensor> survivors, extras, places, last;
  for (size_t i = 0; i + 1 < crops.begin.size(); ++i) {
    if (crops.size(i) == 0 || (!is_adaptive(o) && crops.num_kept[i] == 0)) continue;
    const auto own = [&, i](const at::Tensor& t) { return t.slice(0, crops.begin[i], crops.begin[i + 1]); };
    const at::Tensor patches = own(crops.tokens);
    const at::Tensor chosen = on_device(choose(o, own(looks), own(pinned), crops.num_kept[i]));
    const Merged merged =
        merge(tower.output.index_select(0, patches).to(at::kFloat), tower.key.index_select(0, patches).to(at::kFloat),
              tower.attention.index_select(0, patches), chosen, o.neighbours);
    survivors.push_back(merged.survivors);
    places.push_back(patches.index_select(0, chosen));
    extras.push_back(merged.extra);
    last.push_back(patches.slice(0, patches.size(0) - 1));
  }
  Choice choice{.kept = on_device({}), .added = {}, .crop_by_crop = true};
  if (survivors.empty()) return choice;
  const at::Tensor stands_at = at::cat(places), lasts = at::cat(last);
  choice.added.push_back({NewTokens::Where::kInPlace, at::cat(survivors), stands_at, stands_at});
  if (o.extra_token) choice.added.push_back({NewTokens::Where::kBehind, at::cat(extras), lasts * 0 - 1, lasts});
  return choice;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const std::string name(name_of(o));
  const int layer = o.layer_attention.value_or(model.vision_layers - 1);
  check_vision_layer(name, layer, model);
  const std::vector<CropFacts> crops = crops_of(prompt);
  for (const CropFacts& crop : crops) {
    if (is_adaptive(o)) break;
    const int64_t budget = kept_of(o.amount, crop.size, Rounding::kNearestEven);
    if (patches_of(o, budget) < crop.pinned)
      throw Error(name + ": " + std::to_string(budget) + " tokens of a crop leave no room for " +
                  std::to_string(crop.pinned) + " pinned ones" + (o.extra_token ? " and the rest" : ""));
  }
  return {{.at = {Site::kVisionOutput},
           .scope = Scope::kCrop,
           .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount, .is_adaptive = is_adaptive(o)},
           .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
             return {AttentionProbe{
                         .layer = layer, .rows = AttentionProbe::Rows::kClass, .heads = AttentionProbe::Heads::kJoint},
                     Tap{Tap::What::kVisionKey, layer}, Tap{Tap::What::kVisionOutput}};
           },
           .decide =
               [o](const TokenLayout& layout, std::span<const at::Tensor> signals) {
                 const Tower tower{signals[0].to(at::kFloat), signals[1], signals[2]};
                 Verdict verdict{.choose = [o, tower](const Pools& pools) { return merge_crops(o, tower, pools); }};
                 if (is_adaptive(o)) verdict.num_kept = outliers_of(o, tower, layout);
                 return verdict;
               },
           .is_nested = false,
           .always_acts = true}};
}

OptionSet<O> options() {
  Option<O> ratio =
      keep_ratio(&O::amount, "part of each crop, extra token counted; without an amount the number adapts");
  ratio.check = {};  // without one the number adapts
  return {std::move(ratio),
          num_kept(&O::amount, "number of each crop, extra token counted; without an amount the number adapts"),
          {"neighbours", &O::neighbours, "patches folded into each that stays", at_least(0)},
          {"extra_token", &O::extra_token, "the weighted rest is the crop's last token"},
          {"layer_attention", &O::layer_attention, "vision layer of class attention and keys; the last", at_least(0)}};
}

const Method<O>& method(bool plus) {
  const auto check = [](const O& o) {
    if (!is_adaptive(o)) check_amount(name_of(o), o.amount);
  };
  static const Method<O> plain = {.name = "prumerge", .options = options(), .steps = steps, .check = check};
  static const Method<O> with_grid = {.name = "prumerge+", .options = options(), .steps = steps, .check = check};
  return plus ? with_grid : plain;
}

PolicyRow row_of(bool plus, std::string_view summary, std::vector<PolicyExample> examples) {
  PolicyRow made = row(method(plus), {.paper = "arXiv 2403.15388",
                                      .summary = summary,
                                      .sites = {Site::kVisionOutput},
                                      .needs = "class attention and keys of one vision layer",
                                      .refusal = needs_class_token,
                                      .examples = std::move(examples)});
  made.make = [plus](const PolicySpec& spec, const PolicyFiles& files) {
    O o = read_options(spec.name, spec.options, method(plus).options, &files);
    o.plus = plus;
    return make_prumerge(o);
  };
  return made;
}

}  // namespace

PolicyPtr make_prumerge(const PrumergeOptions& options) {
  return make(method(options.plus), options);
}

PolicyRow prumerge_row() {
  return row_of(false, "each crop keeps what stands out, merged with what is like it",
                {{"prumerge", /*keeps_tokens=*/false}, {"prumerge:num_kept=3", /*keeps_tokens=*/false}});
}

PolicyRow prumerge_plus_row() {
  return row_of(true, "prumerge with a regular grid of other patches",
                {{"prumerge+:num_kept=5", /*keeps_tokens=*/false}, {"prumerge+", /*keeps_tokens=*/false}});
}

}  // namespace espalier
