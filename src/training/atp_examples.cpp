// SPDX-License-Identifier: Apache-2.0
#include "training/atp_examples.h"

#include <algorithm>
#include <vector>

#include "espalier/error.h"
#include "synth/items.h"
#include "text/conversations.h"
#include "training/draw.h"

namespace espalier {

namespace {

class SyntheticExamples final : public AtpExamples {
 public:
  SyntheticExamples(std::span<const std::string> names, const synth::Difficulty& difficulty, uint64_t seed)
      : difficulty_(difficulty), seed_(seed) {
    for (const synth::Cell& cell : synth::select_cells(names)) {
      if (cell.has_unseen_words) continue;
      if (suites_.empty() || suites_.back().front().suite != cell.suite) suites_.emplace_back();
      suites_.back().push_back(cell);
    }
    if (suites_.empty())
      throw Error("train-atp: the chosen cells are for tests alone: their words are never trained on");
  }

  Chat draw(int64_t number, bool is_evaluation) const override {
    Draw draw(seed_, is_evaluation ? "atp evaluation" : "atp training", number);
    const synth::Cell& cell = draw.one_of(draw.one_of(suites_));
    const uint64_t item_seed = 2 * seed_ + (is_evaluation ? 1 : 0);
    const synth::Item item =
        make_item(cell, synth::Split::kTrain, item_seed, static_cast<uint64_t>(number), difficulty_);
    Chat chat;
    for (const synth::Turn& turn : item.turns) {
      const auto image = std::make_shared<const Image>(picture_of(turn));
      chat.messages.push_back({"user", {ImagePart{image, false, {}}, TextPart{turn.question}}});
      chat.messages.push_back({"assistant", {TextPart{turn.answer}}});
    }
    return chat;
  }

  std::string description() const override {
    std::string text = difficulty_.clutter      ? difficulty_.distractor ? "hard" : "clutter"
                       : difficulty_.distractor ? "distractor"
                                                : "plain";
    for (const auto& suite : suites_)
      for (const synth::Cell& cell : suite) text += " " + cell.full_name();
    return text;
  }

 private:
  std::vector<std::vector<synth::Cell>> suites_;
  synth::Difficulty difficulty_;
  uint64_t seed_;
};

bool has_picture(const Message& message) {
  return std::ranges::any_of(message.content, [](const Part& p) { return std::holds_alternative<ImagePart>(p); });
}

// Messages that answer something with a picture before it.
std::vector<size_t> answers_of(const Chat& chat) {
  std::vector<size_t> answers;
  bool saw_picture = false;
  for (size_t i = 0; i < chat.messages.size(); ++i) {
    const Message& message = chat.messages[i];
    saw_picture = saw_picture || has_picture(message);
    if (saw_picture && message.role == "assistant" && i > 0 && chat.messages[i - 1].role == "user")
      answers.push_back(i);
  }
  return answers;
}

class ConversationExamples final : public AtpExamples {
 public:
  ConversationExamples(const std::filesystem::path& data, const std::filesystem::path& image_folder, int64_t held_out,
                       uint64_t seed)
      : file_(data.string()), data_(data, image_folder), seed_(seed) {
    std::vector<int64_t> order;
    for (size_t i = 0; i < data_.size(); ++i)
      if (data_.may_have_images(i)) order.push_back(static_cast<int64_t>(i));
    const int64_t all = std::ssize(order);
    if (all < 2)
      throw Error(file_ + ": at least two conversations with pictures are needed, one of them to evaluate on; of " +
                  std::to_string(data_.size()) + " there " + (all == 1 ? "is 1" : "is none"));
    Draw(seed_, "atp held out", 0).shuffle(order);
    const auto held = static_cast<size_t>(std::clamp<int64_t>(all / 20, 1, std::max<int64_t>(1, held_out)));
    evaluation_.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(held));
    training_.assign(order.begin() + static_cast<std::ptrdiff_t>(held), order.end());
  }

  Chat draw(int64_t number, bool is_evaluation) const override {
    const std::vector<int64_t>& from = is_evaluation ? evaluation_ : training_;
    const auto count = static_cast<int64_t>(from.size());
    // From the drawn one on, the first with an answer behind a picture.
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = number + i;
      std::vector<int64_t> order = from;
      if (!is_evaluation) Draw(seed_, "atp round", place / count).shuffle(order);
      Chat chat = data_.read(static_cast<size_t>(order[static_cast<size_t>(place % count)]));
      const std::vector<size_t> answers = answers_of(chat);
      if (answers.empty()) continue;
      Draw draw(seed_, is_evaluation ? "atp evaluation answer" : "atp answer", place);
      chat.messages.resize(draw.one_of(answers) + 1);
      return chat;
    }
    throw Error(file_ + ": no conversation " + (is_evaluation ? "that is held out for evaluation " : "") +
                "has an answer with a picture before it");
  }

  std::string description() const override { return file_ + " (" + std::to_string(data_.size()) + " conversations)"; }

 private:
  std::string file_;
  Conversations data_;
  uint64_t seed_;
  std::vector<int64_t> training_, evaluation_;
};

}  // namespace

std::unique_ptr<AtpExamples> synthetic_examples(std::span<const std::string> suites,
                                                const synth::Difficulty& difficulty, uint64_t seed) {
  return std::make_unique<SyntheticExamples>(suites, difficulty, seed);
}

std::unique_ptr<AtpExamples> conversation_examples(const std::filesystem::path& data,
                                                   const std::filesystem::path& image_folder, int64_t held_out,
                                                   uint64_t seed) {
  return std::make_unique<ConversationExamples>(data, image_folder, held_out, seed);
}

}  // namespace espalier
