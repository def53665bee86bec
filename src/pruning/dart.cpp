// SPDX-License-Identifier: Apache-2.0
// DART: "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More" (arXiv 2502.11494),
// as docs/specs/dart.md reads it. Symbols: K -> layer (0-based: layers 0 … K-1 run in full), hid -> kFinalNorm of the
// state entering `layer`, key -> kKey of layer-1 after RoPE, l_i -> key_norm (L1 over KV heads: repeating them for
// query heads scales all tokens alike), M -> the budget B of an image, t -> the share of a pivot, C -> candidates.
// Differences from the released code: the budget is met exactly (q = B - image pivots, pivot i takes floor(q/P) and one
// more while i < q mod P; the code keeps 4 + 8·floor(M/8)); pivots vote in the order image by descending l, then text
// by descending l (the code iterates a set); running out of candidates cannot happen; each image has its own budget,
// pivots and candidates, text pivots are shared. Pinned tokens stay beside the pivots, take part in neither, and count.
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
#include "pruning/selection.h"

namespace espalier {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

at::Tensor starts_of(std::span<const int64_t> sizes) {
  std::vector<int64_t> starts(sizes.size() + 1, 0);
  std::partial_sum(sizes.begin(), sizes.end(), starts.begin() + 1);
  return int64_tensor(starts);
}

// The `number` largest of scores [begin, end), best first, as indices into scores.
at::Tensor best_first(const at::Tensor& scores, int64_t begin, int64_t end, int64_t number) {
  const at::Tensor order = scores.slice(0, begin, end).argsort(/*stable=*/true, 0, /*descending=*/true);
  return order.slice(0, 0, number) + begin;
}

class Dart final : public PlannedPolicy {
 public:
  explicit Dart(const DartOptions& options)
      : PlannedPolicy("dart", options.common, options.row_breaks_compete), options_(options) {
    check_amount("dart", options.amount);
    if (options.layer < 1) throw Error("dart: layer=" + std::to_string(options.layer) + " is below 1");
    if (options.image_pivots < 0 || options.text_pivots < 0) throw Error("dart: a number of pivots is below 0");
    if (options.image_pivots + options.text_pivots == 0) throw Error("dart: image_pivots and text_pivots are both 0");
  }

  std::string spec() const override {
    const DartOptions defaults;
    return SpecWriter("dart")
        .amount(options_.amount)
        .add("layer", int64_t{options_.layer}, defaults.layer)
        .add("image_pivots", int64_t{options_.image_pivots}, defaults.image_pivots)
        .add("text_pivots", int64_t{options_.text_pivots}, defaults.text_pivots)
        .row_breaks(options_.row_breaks_compete, defaults.row_breaks_compete)
        .common(common())
        .text();
  }

  std::vector<PlannedPoint> plan(const ModelFacts& model, const PromptLayout& prompt) const override {
    if (options_.layer > model.num_layers)
      throw Error("dart: layer=" + std::to_string(options_.layer) + ", but the model has " +
                  std::to_string(model.num_layers) + " layers");
    const std::vector<int64_t> kept = num_kept(prompt);
    const int64_t left = std::accumulate(kept.begin(), kept.end(), int64_t{0});
    const bool may_drop = options_.layer < model.num_layers && left < prompt.num_image_tokens(row_breaks_compete());
    if (may_drop && options_.image_pivots == 0 && text_behind_last_image(prompt).empty())
      throw Error("dart: image_pivots=0, but no text behind the last image can be a pivot");
    return {{{Site::kBeforeLayer, options_.layer}, left, kept, may_drop}};
  }

  std::vector<Signal> needs(const ActPoint& point, const TokenLayout&, const State*) const override {
    return {Tap{Tap::What::kFinalNorm}, Tap{Tap::What::kKey, point.layer - 1}};
  }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals,
                 State*) const override;

 private:
  struct Voting {
    at::Tensor pivots;                        // indices into the sequence, those of the images first
    std::vector<std::vector<int64_t>> order;  // for each image: rows of `pivots` in the order they vote
    std::vector<int64_t> budget;              // for each image: what its pivots may take
    at::Tensor taken;                         // bool [m]: pinned tokens and image pivots
  };
  Voting choose_pivots(const TokenLayout& layout, const at::Tensor& keys, const Blocks& images) const;

  std::vector<int64_t> num_kept(const PromptLayout& prompt) const {
    PoolRule rule = pool_rule(options_.amount);
    rule.at_least_one = true;
    return kept_per_image(rule, prompt);
  }

  DartOptions options_;
};

Dart::Voting Dart::choose_pivots(const TokenLayout& layout, const at::Tensor& keys, const Blocks& images) const {
  const at::Tensor norm = keys.flatten(1).to(at::kFloat).abs().sum(1);
  Voting voting;
  voting.taken = layout.pinned.index_select(0, layout.image_tokens).clone();
  const at::Tensor of_image = norm.index_select(0, layout.image_tokens).masked_fill(voting.taken, -1);
  std::vector<at::Tensor> pivots;  // ordinals, image by image
  int64_t begin = 0, num_pivots = 0;
  for (size_t i = 0; i < images.sizes.size(); ++i) {
    const int64_t budget = images.num_kept[i] - layout.prompt->pinned_per_image[i];
    const int64_t own = std::clamp<int64_t>(budget, 0, options_.image_pivots);
    pivots.push_back(best_first(of_image, begin, begin + images.sizes[i], own));
    voting.order.emplace_back(own);
    std::iota(voting.order.back().begin(), voting.order.back().end(), num_pivots);
    voting.budget.push_back(budget - own);
    num_pivots += own;
    begin += images.sizes[i];
  }
  const at::Tensor ordinals = at::cat(pivots);
  voting.taken.index_fill_(0, ordinals, true);
  const at::Tensor text = text_tokens_at(layout, text_behind_last_image(*layout.prompt));
  const int64_t shared = std::min<int64_t>(options_.text_pivots, text.size(0));
  const at::Tensor text_pivots = best_first(norm.index_select(0, text), 0, text.size(0), shared);
  voting.pivots = at::cat({layout.image_tokens.index_select(0, ordinals), text.index_select(0, text_pivots)});
  for (std::vector<int64_t>& order : voting.order)
    for (int64_t i = 0; i < shared; ++i) order.push_back(num_pivots + i);
  return voting;
}

// All images vote at once: in round r, pivot r of each image takes its share of the image's candidates.
Verdict Dart::decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor> signals, State*) const {
  const Blocks images = blocks_within(tokens_per_image(layout, row_breaks_compete()), num_kept(*layout.prompt));
  Voting voting = choose_pivots(layout, signals[1], images);
  size_t rounds = 0;
  for (const std::vector<int64_t>& order : voting.order) rounds = std::max(rounds, order.size());
  const at::Tensor hidden = signals[0].to(at::kFloat);
  at::Tensor cosine;  // [pivots, m]
  if (rounds > 0) cosine = ops::cosine_score(hidden, hidden.index_select(0, voting.pivots), layout.image_tokens);
  const at::Tensor image = layout.image.index_select(0, layout.image_tokens), starts = starts_of(images.sizes);
  for (size_t round = 0; round < rounds; ++round) {
    std::vector<int64_t> pivot, share;
    for (size_t i = 0; i < images.sizes.size(); ++i) {
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
  const int64_t left = std::accumulate(images.num_kept.begin(), images.num_kept.end(), int64_t{0});
  return {.kept = indices_of(voting.taken, left)};
}

}  // namespace

PolicyPtr make_dart(const DartOptions& options) {
  return std::make_shared<Dart>(options);
}

PlannedPolicyPtr dart_from(const OptionReader& reader) {
  DartOptions options;
  options.amount = reader.amount();
  options.layer = static_cast<int>(reader.integer("layer", options.layer, 1, 1 << 20));
  options.image_pivots = static_cast<int>(reader.integer("image_pivots", options.image_pivots, 0, 1 << 20));
  options.text_pivots = static_cast<int>(reader.integer("text_pivots", options.text_pivots, 0, 1 << 20));
  options.row_breaks_compete = reader.row_breaks_compete(options.row_breaks_compete);
  options.common = reader.common();
  return std::make_shared<Dart>(options);
}

}  // namespace espalier
