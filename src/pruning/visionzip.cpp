// SPDX-License-Identifier: Apache-2.0
// VisionZip (arXiv 2412.04467), as docs/specs/visionzip.md reads it.
//   D  dominant tokens, the class row among them
//   C  contextual tokens
//   s  the class probe: mean over heads where the paper sums; the order is the same
//   k  head means of kVisionKey
//   x  kVisionOutput
//   R  patches that are not dominant
// A contextual token is its target plus the mean of its members, as the released code has it; the paper speaks of an
// average. Differences from the released code:
//   - positions are those of the patches that tokens stand at (the class row: of the first of its crop) unless
//     positions=compact says otherwise;
//   - crops enter the decoder one behind the other, without row breaks (the code stitches the dominant patches of tiles
//     again);
//   - pinned tokens are dominant.
#include "espalier/policies/visionzip.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <iterator>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/group_means.h"

namespace espalier {

namespace {

using O = VisionzipOptions;

// Rows of length 1; a row without a direction stays near 0.
at::Tensor unit_rows(const at::Tensor& x) {
  return x / (x * x).sum(1, true).sqrt().clamp_min(1e-12);
}

// Target plus mean of the members, float32 [C, d]. x and key: rows of R; targets int64 [C] into them.
at::Tensor contextual_tokens(const at::Tensor& x, const at::Tensor& key, const at::Tensor& targets) {
  const at::Tensor unit = unit_rows(key), cosine = at::matmul(unit, unit.index_select(0, targets).t());  // [R, C]
  const at::Tensor order = at::arange(targets.size(0), targets.options());
  // Of equal cosines the earlier target.
  const at::Tensor joins = at::where(cosine >= cosine.amax(1, true), order, targets.size(0)).amin(1, true);
  // Targets are no members, not even of each other.
  const at::Tensor group = joins.squeeze(1).index_fill(0, targets, targets.size(0));
  return x.index_select(0, targets) + group_means(x, group, targets.size(0));
}

// A crop's budget without the class row: dominant patches (below 0 where there is no room), contextual tokens.
struct Split {
  int64_t dominant = 0, contextual = 0;
};

Split split_of(const O& o, int64_t budget, int64_t size) {
  if (budget == 0) return {0, 0};  // not even the class row
  const int64_t wanted = o.contextual.value_or(rounded_share({10, 64}, budget, Rounding::kNearestEven));
  const int64_t dominant = budget - wanted - 1;
  return {dominant, std::min(wanted, std::max<int64_t>(0, size - dominant))};
}

// Row of kVisionClass of the first crop that is there: behind a cached prefix the signal has no rows of its pictures.
int64_t first_class_row(const TokenLayout& layout, const std::vector<CropFacts>& crops) {
  int image = 0;
  for (const Segment& s : layout.prompt->segments)
    if (s.begin < layout.begin && s.image >= 0) image = s.image + 1;
  for (const CropFacts& crop : crops)
    if (crop.image >= image) return crop.class_row - crop.crop;
  return 0;
}

// class_attention [patches], key [patches, d_k] head means, output [patches, d_v], class_rows [crops, d_v].
struct Tower {
  at::Tensor class_attention, key, output, class_rows;
};

Choice zip(const O& o, const TokenLayout& layout, const Tower& tower, const Pools& crops) {
  const std::vector<CropFacts> facts = crops_of(*layout.prompt);
  const int64_t first_row = first_class_row(layout, facts);
  const auto on_device = [&](const std::vector<int64_t>& v) { return int64_tensor(v).to(crops.tokens.device()); };
  std::vector<at::Tensor> kept = {on_device({})}, vectors, targets, firsts;
  std::vector<int64_t> classes;
  for (size_t i = 0; i < facts.size(); ++i) {
    const int64_t size = crops.size(i);
    if (size == 0 || crops.num_kept[i] == 0) continue;
    const auto [dominant, c] = split_of(o, crops.num_kept[i], size);
    const at::Tensor own = crops.tokens.slice(0, crops.begin[i], crops.begin[i + 1]);
    const at::Tensor pinned = crops.always.slice(0, crops.begin[i], crops.begin[i + 1]);
    const at::Tensor best = best_of({at::arange(size, own.options()), {0, size}, {dominant}, pinned},
                                    tower.class_attention.index_select(0, own));
    const at::Tensor rest = indices_of((own == own).index_fill(0, best, false), size - dominant);
    classes.push_back(facts[i].class_row - first_row);
    firsts.push_back(own.slice(0, 0, 1));
    kept.push_back(own.index_select(0, best));
    if (c == 0) continue;
    const at::Tensor places = at::arange(c, rest.options()) * std::max<int64_t>(1, (size - dominant) / c);
    const at::Tensor rows = own.index_select(0, rest);
    vectors.push_back(
        contextual_tokens(tower.output.index_select(0, rows).to(at::kFloat), tower.key.index_select(0, rows), places));
    targets.push_back(rows.index_select(0, places));
  }
  Choice choice{.kept = at::cat(kept), .added = {}, .crop_by_crop = true};
  if (firsts.empty()) return choice;
  const at::Tensor first = at::cat(firsts);
  choice.added.push_back({NewTokens::Where::kFront, tower.class_rows.index_select(0, on_device(classes)).to(at::kFloat),
                          first * 0 - 1, first});
  if (!vectors.empty()) {
    const at::Tensor stands_at = at::cat(targets);
    choice.added.push_back({NewTokens::Where::kBehind, at::cat(vectors), stands_at, stands_at});
  }
  return choice;
}

std::vector<Step> steps(const O& o, const ModelFacts& model, const PromptLayout& prompt) {
  const int layer = o.layer_attention.value_or(model.vision_feature_layer);
  check_vision_layer("visionzip", layer, model);
  for (const CropFacts& crop : crops_of(prompt)) {
    const int64_t budget = kept_of(o.amount, crop.size, Rounding::kNearestEven);
    const Split split = split_of(o, budget, crop.size);
    if (split.dominant < crop.pinned)
      throw Error("visionzip: " + std::to_string(budget) + " tokens of a crop, " + std::to_string(split.contextual) +
                  " of them contextual, leave no room for the class row and " + std::to_string(crop.pinned) +
                  " pinned tokens");
  }
  return {{.at = {Site::kVisionOutput},
           .scope = Scope::kCrop,
           .budget = {.pool = Budget::Pool::kCrop, .amount = o.amount},
           .needs = [layer](const TokenLayout&) -> std::vector<Signal> {
             return {AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass},
                     Tap{Tap::What::kVisionKey, layer}, Tap{Tap::What::kVisionOutput}, Tap{Tap::What::kVisionClass}};
           },
           .decide =
               [o, heads = std::max(1, model.vision_heads)](const TokenLayout& layout,
                                                            std::span<const at::Tensor> signals) {
                 const at::Tensor keys = signals[1].to(at::kFloat).view({signals[1].size(0), heads, -1}).mean(1);
                 const Tower tower{signals[0], keys, signals[2], signals[3]};
                 return Verdict{
                     .choose = [o, layout, tower](const Pools& crops) { return zip(o, layout, tower, crops); }};
               },
           .is_nested = false,
           .always_acts = true}};
}

const Method<O>& method() {
  static const Method<O> method = {
      .name = "visionzip",
      .options = {keep_ratio(&O::amount,
                             "part of each crop, class row and contextual tokens counted; this or num_kept"),
                  num_kept(&O::amount, "number of each crop, the same counted; this or keep_ratio"),
                  {"contextual", &O::contextual, "of these, tokens that summarise the rest; 10/64 of them",
                   at_least(0)},
                  {"layer_attention", &O::layer_attention,
                   "vision layer of class attention and keys; the one the projector reads", at_least(0)}},
      .steps = steps};
  return method;
}

}  // namespace

PolicyPtr make_visionzip(const VisionzipOptions& options) {
  return make(method(), options);
}

PolicyRow visionzip_row() {
  return row(method(), {.paper = "arXiv 2412.04467",
                        .summary = "each crop keeps its class row, what that looks at, and averages of the rest",
                        .sites = {Site::kVisionOutput},
                        .needs = "class attention and keys of one vision layer, class rows",
                        .refusal = needs_class_token,
                        .examples = {{"visionzip:num_kept=9,contextual=3", /*keeps_tokens=*/false},
                                     {"visionzip:num_kept=7", /*keeps_tokens=*/false}}});
}

}  // namespace espalier
