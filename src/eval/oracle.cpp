// SPDX-License-Identifier: Apache-2.0
#include "eval/oracle.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <utility>

#include "espalier/error.h"
#include "espalier/policies/options.h"
#include "pruning/policy_spec.h"

namespace espalier::eval {

namespace {

using synth::Cover;

const OptionSet<OracleOptions>& options() {
  static const OptionSet<OracleOptions> set = {
      keep_ratio(&OracleOptions::amount, "of each image"),
      num_kept(&OracleOptions::amount, "of each image"),
      {"knows", &OracleOptions::knows_question, {{"question", true}, {"scene", false}}, "question, or scene"}};
  return set;
}

class Oracle final : public PruningPolicy {
 public:
  Oracle(const OracleOptions& options, std::shared_ptr<const synth::Item> item)
      : options_(options), item_(std::move(item)) {}

  std::string spec() const override { return spec_of("oracle", options(), options_); }

  std::vector<Step> steps(const ModelFacts&, const PromptLayout& prompt) const override {
    const bool is_plain = std::ranges::none_of(prompt.images, [](const ImageShape& s) { return s.tiling.has_value(); });
    if (!is_plain) throw Error("oracle: works on images of one crop");
    if (prompt.images.size() != item_->turns.size())
      throw Error("oracle: the request has " + std::to_string(prompt.images.size()) + " images, the item " +
                  std::to_string(item_->turns.size()));
    return {{.at = {Site::kProjectorOutput},
             .budget = {.pool = Budget::Pool::kImage, .amount = options_.amount},
             .decide = [this](const TokenLayout& layout, std::span<const at::Tensor>) { return rank(*layout.prompt); },
             .always_acts = true}};
  }

 private:
  // The sooner needed, the higher; image by image in the order of the sequence.
  Verdict rank(const PromptLayout& prompt) const {
    std::vector<float> scores;
    for (size_t i = 0; i < prompt.images.size(); ++i) {
      const GridSize grid = prompt.images[i].grid;
      synth::Turn turn = item_->turns[i];
      if (!options_.knows_question) turn.asked.reset();
      const std::vector<int> order = by_need(
          synth::patch_covers(synth::draw(turn.scene), static_cast<int>(grid.rows), static_cast<int>(grid.cols)), turn);
      const size_t first = scores.size();
      scores.resize(first + order.size());
      for (size_t rank = 0; rank < order.size(); ++rank)
        scores[first + static_cast<size_t>(order[rank])] = -static_cast<float>(rank);
    }
    return {.scores = at::tensor(scores).to(prompt.kind.device())};
  }

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
  for (size_t i = 0; i < turn.scene.objects.size(); ++i)
    things.push_back({Cover::By::kObject, static_cast<uint8_t>(i)});
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
  const auto asked = read_options(specs[0].name, specs[0].options, options());
  options().check("oracle", asked);
  return asked;
}

PolicyPtr make_oracle(const OracleOptions& options, std::shared_ptr<const synth::Item> item) {
  return std::make_shared<Oracle>(options, std::move(item));
}

}  // namespace espalier::eval
