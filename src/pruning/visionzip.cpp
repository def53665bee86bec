// SPDX-License-Identifier: Apache-2.0
// VisionZip (arXiv 2412.04467), as docs/specs/visionzip.md reads it.
// Symbols: D -> dominant tokens, the class row among them, C -> contextual tokens, s -> the class probe (mean over
// heads where the paper sums: the order is the same), k -> head means of kVisionKey, x -> kVisionOutput, R -> patches
// that are not dominant. A contextual token is its target plus the mean of its members, as the released code has it;
// the paper speaks of an average. Differences from the released code: positions are those of the patches that tokens
// stand at (the class row: of the first of its crop) unless positions=compact says otherwise; crops enter the decoder
// one behind the other, without row breaks (the code stitches the dominant patches of tiles again). Pinned tokens are
// dominant.
#include "espalier/policies/visionzip.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "espalier/error.h"
#include "pruning/built_in.h"
#include "pruning/crop_pools.h"
#include "pruning/group_means.h"
#include "pruning/selection.h"

namespace espalier {

namespace {

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

class Visionzip final : public PlannedPolicy {
 public:
  explicit Visionzip(const VisionzipOptions& options)
      : PlannedPolicy("visionzip", options.common, false), options_(options) {
    check_amount("visionzip", options.amount);
    if (options.contextual && *options.contextual < 0)
      throw Error("visionzip: contextual=" + std::to_string(*options.contextual) + " is below 0");
  }

  std::string spec() const override {
    SpecWriter writer("visionzip");
    writer.amount(options_.amount);
    if (options_.contextual) writer.add("contextual", std::to_string(*options_.contextual));
    if (options_.layer_attention) writer.add("layer_attention", std::to_string(*options_.layer_attention));
    return writer.common(common()).text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (!model.has_class_token) throw Error("visionzip: the vision tower has no class token");
    const int layer = options_.layer_attention.value_or(model.vision_feature_layer);
    if (layer < 0 || layer >= model.vision_layers)
      throw Error("visionzip: vision layer " + std::to_string(layer) + ", but the tower has " +
                  std::to_string(model.vision_layers));
    const auto pools = crop_pools(prompt);
    const std::vector<int64_t> budgets = num_kept(pools);
    for (size_t i = 0; i < pools.size(); ++i) {
      const Split split = split_of(budgets[i], pools[i].size);
      if (split.dominant < pools[i].pinned)
        throw Error("visionzip: " + std::to_string(budgets[i]) + " tokens of a crop, " +
                    std::to_string(split.contextual) + " of them contextual, leave no room for the class row and " +
                    std::to_string(pools[i].pinned) + " pinned tokens");
    }
    const std::vector<int64_t> left = sum_per_image(budgets, pools, prompt.images.size());
    return {{{Site::kVisionOutput}, std::accumulate(left.begin(), left.end(), int64_t{0}), left, !pools.empty()}};
  }

  std::unique_ptr<State> begin_sequence(const ModelFacts& model, const PromptLayout&) const override {
    auto state = std::make_unique<VisionzipState>();
    state->layer = options_.layer_attention.value_or(model.vision_feature_layer);
    state->heads = model.vision_heads;
    return state;
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State* state) const override {
    const int layer = dynamic_cast<const VisionzipState&>(*state).layer;
    return {AttentionProbe{.layer = layer, .rows = AttentionProbe::Rows::kClass}, Tap{Tap::What::kVisionKey, layer},
            Tap{Tap::What::kVisionOutput}, Tap{Tap::What::kVisionClass}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State* state) const override {
    const auto pools = crop_pools(*layout.prompt);
    const auto crops = crop_tokens(layout, pools, false);
    const std::vector<int64_t> budgets = num_kept(pools);
    const at::Tensor is_pinned = layout.pinned.index_select(0, layout.image_tokens);
    const auto on_device = [&](const std::vector<int64_t>& v) { return int64_tensor(v).to(is_pinned.device()); };
    const int64_t heads = std::max(1, dynamic_cast<const VisionzipState&>(*state).heads);
    const at::Tensor keys = signals[1].to(at::kFloat).view({signals[1].size(0), heads, -1}).mean(1);
    std::vector<at::Tensor> kept = {on_device({})}, vectors, targets;
    std::vector<int64_t> classes, firsts;
    for (size_t i = 0; i < crops.size(); ++i) {
      const auto size = std::ssize(crops[i].ordinals);
      if (size == 0 || budgets[i] == 0) continue;
      const at::Tensor ordinals = on_device(crops[i].ordinals), patches = on_device(crops[i].patches);
      const auto [dominant, c] = split_of(budgets[i], size);
      const at::Tensor best =
          keep_best(signals[0].index_select(0, patches), is_pinned.index_select(0, ordinals), {{size}, {dominant}});
      const at::Tensor rest = indices_of((patches == patches).index_fill(0, best, false), size - dominant);
      classes.push_back(pools[i].class_row);
      firsts.push_back(crops[i].ordinals.front());
      kept.push_back(ordinals.index_select(0, best));
      if (c == 0) continue;
      const at::Tensor places = at::arange(c, rest.options()) * std::max<int64_t>(1, (size - dominant) / c);
      const at::Tensor rows = patches.index_select(0, rest);
      vectors.push_back(
          contextual_tokens(signals[2].index_select(0, rows).to(at::kFloat), keys.index_select(0, rows), places));
      targets.push_back(ordinals.index_select(0, rest.index_select(0, places)));
    }
    Verdict verdict{.kept = std::get<0>(at::cat(kept).sort()), .added = {}, .crop_by_crop = true};
    if (firsts.empty()) return verdict;
    const at::Tensor first = on_device(firsts);
    verdict.added.push_back({NewTokens::Where::kFront, signals[3].index_select(0, on_device(classes)).to(at::kFloat),
                             first * 0 - 1, first});
    if (!vectors.empty()) {
      const at::Tensor stands_at = at::cat(targets);
      verdict.added.push_back({NewTokens::Where::kBehind, at::cat(vectors), stands_at, stands_at});
    }
    return verdict;
  }

 private:
  struct VisionzipState final : State {
    int layer = 0;
    int heads = 1;
  };

  std::vector<int64_t> num_kept(const std::vector<CropPool>& pools) const {
    return kept_per_crop({"visionzip", options_.amount, common().min_per_image}, pools);
  }

  // A crop's budget without the class row: dominant patches (below 0 where there is no room), contextual tokens.
  struct Split {
    int64_t dominant = 0, contextual = 0;
  };
  Split split_of(int64_t budget, int64_t size) const {
    if (budget == 0) return {0, 0};  // not even the class row
    const int64_t wanted = options_.contextual.value_or(rounded_share({10, 64}, budget, Rounding::kNearestEven));
    const int64_t dominant = budget - wanted - 1;
    return {dominant, std::min(wanted, std::max<int64_t>(0, size - dominant))};
  }

  VisionzipOptions options_;
};

}  // namespace

PolicyPtr make_visionzip(const VisionzipOptions& options) {
  return std::make_shared<Visionzip>(options);
}

PlannedPolicyPtr visionzip_from(const OptionReader& reader) {
  VisionzipOptions options;
  options.amount = reader.amount();
  if (reader.text("contextual")) options.contextual = reader.integer("contextual", 0, 0);
  if (reader.text("layer_attention"))
    options.layer_attention = static_cast<int>(reader.integer("layer_attention", 0, 0, 1 << 20));
  options.common = reader.common();
  return std::make_shared<Visionzip>(options);
}

}  // namespace espalier
