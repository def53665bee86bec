// SPDX-License-Identifier: Apache-2.0
#include "training/batch_builder.h"

#include <torch/types.h>

#include <algorithm>

#include "espalier/error.h"
#include "synth/wording.h"

namespace espalier {

namespace {

// The end of a turn is certain once the answer is there: it is learned, and not more than that.
constexpr double kEndWeight = 0.1;
// A sequence has a hundred times as many slots that say something as it has answers.
constexpr double kSlotWeight = 0.05;

at::Tensor tensor(const std::vector<int64_t>& values) {
  return torch::tensor(values, torch::kLong);
}

}  // namespace

TurnTokens::TurnTokens(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  const auto id = [&](const char* token) {
    const std::optional<int32_t> found = tokenizer.id_of(token);
    if (!found) throw Error(std::string("training: the tokenizer lacks ") + token);
    return static_cast<int64_t>(*found);
  };
  begin_ = id("<s>");
  end_ = id("</s>");
  image_ = id("<image>");
}

const TurnTokens::Turn& TurnTokens::turn(const std::string& question, const std::string& answer) const {
  const std::string text = synth::open_turn(question) + synth::close_turn(answer);
  const auto [found, is_new] = turns_.try_emplace(text);
  Turn& turn = found->second;
  if (!is_new) return turn;
  for (const int32_t id : tokenizer_.encode(text, /*add_special=*/false)) turn.ids.push_back(id);
  turn.image = static_cast<size_t>(std::ranges::find(turn.ids, image_) - turn.ids.begin());
  turn.answer = turn.ids.size() - 2;
  if (turn.image >= turn.ids.size() || turn.ids.back() != end_ || turn.ids[turn.answer] != word(answer))
    throw Error("training: the answer of this turn is not one token: " + text);
  return turn;
}

int64_t TurnTokens::word(const std::string& word) const {
  const std::optional<int32_t> id = tokenizer_.id_of("\u2581" + word);
  if (!id) throw Error("training: the tokenizer lacks the word " + word);
  return *id;
}

std::vector<int64_t> TurnTokens::all_words() const {
  std::vector<int64_t> words;
  for (const std::string_view w : synth::other_words()) words.push_back(word(std::string(w)));
  return words;
}

void BatchBuilder::push(int64_t id) {
  ids_.push_back(id);
  positions_.push_back(position_++);
}

void BatchBuilder::score(int64_t row, int64_t target, double weight, int topic) {
  scored_rows_.push_back(row);
  targets_.push_back(target);
  weights_.push_back(static_cast<float>(weight));
  topics_.push_back(topic);
}

void BatchBuilder::begin_sequence(int64_t first_position) {
  begin_.push_back(static_cast<int64_t>(ids_.size()));
  position_ = first_position;
  push(tokens_.begin());
}

void BatchBuilder::add_turn(const std::string& question, const std::string& answer, const std::vector<ImageSlot>& slots,
                            bool is_scored, int topic, int slots_topic) {
  const TurnTokens::Turn& turn = tokens_.turn(question, answer);
  for (size_t i = 0; i < turn.ids.size(); ++i) {
    const auto row = static_cast<int64_t>(ids_.size());
    if (i != turn.image) {
      if (is_scored && i == turn.answer) {
        score(row - 1, turn.ids[i], 1.0, topic);
        score(row, tokens_.end(), kEndWeight, kNotCounted);
      }
      push(turn.ids[i]);
      continue;
    }
    for (const ImageSlot& slot : slots) {
      if (slot.says >= 0) score(static_cast<int64_t>(ids_.size()), slot.says, kSlotWeight, slots_topic);
      if (slot.feature >= 0) {
        image_rows_.push_back(static_cast<int64_t>(ids_.size()));
        feature_rows_.push_back(slot.feature);
      }
      ids_.push_back(slot.feature >= 0 ? 0 : slot.word);
      positions_.push_back(position_ + slot.place);
    }
    position_ += tokens_per_image_;
  }
}

void BatchBuilder::add_text(const std::vector<int64_t>& ids, const std::vector<bool>& is_scored, int topic) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (is_scored[i]) score(static_cast<int64_t>(ids_.size()) - 1, ids[i], 1.0, topic);
    push(ids[i]);
  }
}

TrainingBatch BatchBuilder::finish() {
  begin_.push_back(static_cast<int64_t>(ids_.size()));
  return {.ids = tensor(ids_),
          .position_id = tensor(positions_),
          .begin = tensor(begin_),
          .image_rows = tensor(image_rows_),
          .features = {},
          .scored_rows = tensor(scored_rows_),
          .targets = tensor(targets_),
          .weights = torch::tensor(weights_, torch::kFloat),
          .topic = topics_};
}

at::Tensor answer_loss(const at::Tensor& logits, const TrainingBatch& batch) {
  const at::ScalarType dtype = logits.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const at::Tensor each = at::cross_entropy_loss(logits.to(dtype), batch.targets, {}, at::Reduction::None);
  return (each * batch.weights).sum() / batch.weights.sum();
}

}  // namespace espalier
