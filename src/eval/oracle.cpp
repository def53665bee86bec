// SPDX-License-Identifier: Apache-2.0
#include "eval/oracle.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <utility>

#include "espalier/error.h"
#include "pruning/policy_spec.h"
#include "pruning/selection.h"

namespace espalier::eval {

namespace {

using synth::Cover;

constexpr ValueNames<bool, 2> kKnowledge = {{{"question", true}, {"scene", false}}};

class Oracle final : public PruningPolicy {
 public:
  Oracle(const OracleOptions& options, std::shared_ptr<const synth::Item> item)
      : options_(options), item_(std::move(item)) {}

  std::string spec() const override {
    return SpecWriter("oracle")
        .amount(options_.amount)
        .choice("knows", options_.knows_question, OracleOptions().knows_question, kKnowledge)
        .text();
  }

  std::vector<ActPoint> points(const ModelFacts&, const PromptLayout& prompt) const override {
    const bool is_plain = std::ranges::none_of(prompt.images, [](const ImageShape& s) { return s.tiling.has_value(); });
    if (!is_plain) throw Error("oracle: works on images of one crop");
    if (prompt.images.size() != item_->turns.size())
      throw Error("oracle: the request has " + std::to_string(prompt.images.size()) + " images, the item " +
                  std::to_string(item_->turns.size()));
    return {{Site::kProjectorOutput}};
  }

  std::vector<Signal> needs(const ActPoint&, const TokenLayout&, const State*) const override { return {}; }

  Verdict decide(const ActPoint&, const TokenLayout& layout, std::span<const at::Tensor>, State*) const override {
    const PromptLayout& prompt = *layout.prompt;
    const std::vector<int64_t> wanted = kept_per_image({.policy = "oracle", .amount = options_.amount}, prompt);
    std::vector<int64_t> kept;
    int64_t first = 0;  // ordinal of the image's first token
    for (size_t i = 0; i < prompt.images.size(); ++i) {
      const GridSize grid = prompt.images[i].grid;
      synth::Turn turn = item_->turns[i];
      if (!options_.knows_question) turn.asked.reset();
      const std::vector<Cover> covers =
          synth::patch_covers(synth::draw(turn.scene), static_cast<int>(grid.rows), static_cast<int>(grid.cols));
      std::vector<int> patches = by_need(covers, turn);
      patches.resize(static_cast<size_t>(wanted[i]));
      std::ranges::sort(patches);
      for (const int patch : patches) kept.push_back(first + patch);
      first += grid.rows * grid.cols;
    }
    return {.kept = at::tensor(kept, at::kLong).to(layout.image_tokens.device())};
  }

 private:
  OracleOptions options_;
  std::shared_ptr<const synth::Item> item_;
};

// One patch of each thing in turn, until all are taken.
void deal_out(std::vector<std::vector<int>> things, std::vector<int>& order) {
  for (size_t round = 0; std::ranges::any_of(things, [&](const auto& t) { return round < t.size(); }); ++round)
    for (const std::vector<int>& thing : things)
      if (round < thing.size()) order.push_back(thing[round]);
}

}  // namespace

std::vector<int> by_need(std::span<const Cover> covers, const synth::Turn& turn) {
  const auto patches_of = [&](Cover wanted) {
    std::vector<int> patches;
    for (size_t i = 0; i < covers.size(); ++i)
      if (covers[i] == wanted) patches.push_back(static_cast<int>(i));
    return patches;
  };
  std::vector<int> order;
  if (turn.asked) order = patches_of(*turn.asked);
  std::vector<std::vector<int>> others;
  std::vector<Cover> things = {{Cover::By::kSpot}};
  for (uint8_t i = 0; i < turn.scene.objects.size(); ++i) things.push_back({Cover::By::kObject, i});
  for (const Cover thing : things)
    if (turn.asked != thing) others.push_back(patches_of(thing));
  deal_out(std::move(others), order);
  for (const Cover::By by : {Cover::By::kDistractor, Cover::By::kClutter, Cover::By::kBackground})
    std::ranges::copy(patches_of({by}), std::back_inserter(order));
  return order;
}

std::optional<OracleOptions> parse_oracle(std::string_view text) {
  const std::vector<PolicySpec> specs = parse_policy_spec(text);
  if (specs.size() != 1 || specs[0].name != "oracle") return std::nullopt;
  static constexpr PolicyOption kOptions[] = {
      {"keep_ratio", "", "of each image"}, {"num_kept", "", "of each image"}, {"knows", "question", "or scene"}};
  static constexpr PolicyEntry kEntry{
      .name = "oracle", .paper = "", .summary = "", .options = kOptions, .sites = {}, .needs = "", .refusal = nullptr};
  const OptionReader reader(specs[0], kEntry);
  const OracleOptions options{.amount = reader.amount(), .knows_question = reader.choice("knows", true, kKnowledge)};
  check_amount("oracle", options.amount);
  return options;
}

PolicyPtr make_oracle(const OracleOptions& options, std::shared_ptr<const synth::Item> item) {
  return std::make_shared<Oracle>(options, std::move(item));
}

}  // namespace espalier::eval
