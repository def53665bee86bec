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

const OptionSet<OracleOptions>& options() {
  static const OptionSet<OracleOptions> set = {
      keep_ratio(&OracleOptions::amount, "of each image"),
      num_kept(&OracleOptions::amount, "of each image"),
      {"knows", &OracleOptions::knows_question, {{"question", true}, {"scene", false}}, "question, or scene"}};
  return set;
}

constexpr int kPixelsAPatch = 7;

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
      if (!options_.knows_question) turn.asked.reset(), turn.needed.clear();
      const auto rows = static_cast<int>(grid.rows), cols = static_cast<int>(grid.cols);
      // Whole pixels a patch, as many as in the pictures that the scenes are made for.
      const int side = std::max(synth::kDefaultSide, kPixelsAPatch * std::max(rows, cols));
      const synth::Drawing drawing = synth::draw(turn.scene, side);
      const std::vector<int> order = by_need(synth::patch_covers(drawing, rows, cols), turn);
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

}  // namespace

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
