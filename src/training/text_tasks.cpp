// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "synth/wording.h"
#include "training/draw.h"
#include "training/language_task.h"

namespace espalier {

namespace {

using synth::Attribute;

constexpr int64_t kMostFirstPosition = 1024;

const char* purpose(bool is_evaluation) {
  return is_evaluation ? "evaluation" : "training";
}

class Copying : public LanguageTask {
 public:
  Copying(const LlavaConfig& config, const TurnTokens& tokens, const LanguageTaskOptions& options, uint64_t seed,
          int64_t sequences, int64_t length)
      : LanguageTask(config, options),
        tokens_(tokens),
        words_(tokens.all_words()),
        seed_(seed),
        sequences_(sequences),
        length_(length) {}

  std::vector<std::string> topics() const override { return {"repeated", "key-value"}; }

  TrainingBatch batch(int64_t number, bool is_evaluation) const override {
    Draw draw(seed_, std::string("copying ") + purpose(is_evaluation), number);
    BatchBuilder builder(tokens_, 0);
    for (int64_t s = 0; s < sequences_; ++s) {
      builder.begin_sequence(draw.below(kMostFirstPosition));
      if (s % 2 == 0) {
        add_repeated(builder, draw);
      } else {
        add_pairs(builder, draw);
      }
    }
    return builder.finish();
  }

 private:
  void add_repeated(BatchBuilder& builder, Draw& draw) const {
    const auto period = static_cast<size_t>(draw.between(4, 31));
    std::vector<int64_t> ids;
    std::vector<bool> is_scored;
    for (size_t i = 0; i < static_cast<size_t>(length_); ++i) {
      ids.push_back(i < period ? draw.one_of(words_) : ids[i - period]);
      is_scored.push_back(i > period);  // the first repeated token is no one's successor yet
    }
    builder.add_text(ids, is_scored, 0);
  }

  // Few keys, each with a value of its own; a pair seen before is predictable.
  void add_pairs(BatchBuilder& builder, Draw& draw) const {
    const int64_t keys = draw.between(3, 12);
    std::vector<int64_t> key, value;
    for (int64_t i = 0; i < keys; ++i) {
      key.push_back(draw.one_of(words_));
      value.push_back(draw.one_of(words_));
    }
    std::vector<int64_t> ids;
    std::vector<bool> is_scored;
    std::set<int64_t> seen;
    for (int64_t i = 0; i < length_ / 2; ++i) {
      const auto pick = static_cast<size_t>(draw.below(keys));
      const int64_t first = std::ranges::find(key, key[pick]) - key.begin();  // keys drawn twice share a value
      ids.push_back(key[pick]);
      is_scored.push_back(false);
      ids.push_back(value[static_cast<size_t>(first)]);
      is_scored.push_back(!seen.insert(first).second);
    }
    builder.add_text(ids, is_scored, 1);
  }

  const TurnTokens& tokens_;
  std::vector<int64_t> words_;
  uint64_t seed_;
  int64_t sequences_, length_;
};

// Turns of which only the last few tokens before the answer are there, behind what is named: with none, a pair as in
// copying; with all, the real turn. Binding answers the class with its word, resolving the word with its class.
class ShortTurns : public LanguageTask {
 public:
  ShortTurns(const LlavaConfig& config, const TurnTokens& tokens, const LanguageTaskOptions& options, uint64_t seed,
             int64_t sequences, int64_t turns, double resolve)
      : LanguageTask(config, options),
        tokens_(tokens),
        seed_(seed),
        sequences_(sequences),
        turns_(turns),
        resolve_(resolve) {}

  std::vector<std::string> topics() const override {
    return {"none",         "1 token",         "2",         "3",         "4",         "5",
            "resolve none", "resolve 1 token", "resolve 2", "resolve 3", "resolve 4", "resolve 5"};
  }

  TrainingBatch batch(int64_t number, bool is_evaluation) const override {
    Draw draw(seed_, std::string("short turns ") + purpose(is_evaluation), number);
    BatchBuilder builder(tokens_, 0);
    for (int64_t s = 0; s < sequences_; ++s) add_sequence(builder, draw);
    return builder.finish();
  }

 private:
  static constexpr int64_t kMostBetween = 5;  // "\nname the shape ASSISTANT:"

  void add_sequence(BatchBuilder& builder, Draw& draw) const {
    const auto attribute = static_cast<Attribute>(draw.below(synth::kNumAttributes));
    const std::vector<std::string> words = draw_words(draw, attribute, synth::kNumClasses);
    const int64_t between = draw.between(0, kMostBetween);
    builder.begin_sequence();
    std::set<size_t> seen;
    for (int64_t t = 0; t < turns_; ++t) {
      const auto c = static_cast<size_t>(draw.below(synth::kNumClasses));
      const std::string name(class_name(attribute, static_cast<int64_t>(c)));
      if (attribute != Attribute::kSpot && seen.contains(c) && draw.chance(resolve_)) {
        const TurnTokens::Turn& turn = tokens_.turn(ask_class_of(attribute, words[c]), name);
        add_turn(builder, turn, tokens_.word(words[c]), between, true, static_cast<int>(kMostBetween + 1 + between));
      } else {
        const TurnTokens::Turn& turn = tokens_.turn(synth::ask_name(attribute), words[c]);
        add_turn(builder, turn, tokens_.word(name), between, !seen.insert(c).second, static_cast<int>(between));
      }
    }
  }

  // What stands before the picture, what is named, and the last `between` tokens before the answer.
  void add_turn(BatchBuilder& builder, const TurnTokens::Turn& turn, int64_t named, int64_t between, bool is_scored,
                int topic) const {
    const auto from = turn.ids.begin(), answer = from + static_cast<std::ptrdiff_t>(turn.answer);
    std::vector<int64_t> ids(from, from + static_cast<std::ptrdiff_t>(turn.image));
    builder.add_text(ids, std::vector<bool>(ids.size(), false), kNotCounted);
    builder.skip_positions(config().vision.num_patches() - 1);
    const auto first = answer - static_cast<std::ptrdiff_t>(between);
    const auto inside = std::find(first, answer, named);  // a resolving question names the word itself
    ids.assign(inside == answer ? 1 : 0, named);
    ids.insert(ids.end(), first, turn.ids.end());
    std::vector<bool> scored(ids.size(), false);
    scored[ids.size() - 2] = is_scored;
    builder.add_text(ids, scored, topic);
  }

  const TurnTokens& tokens_;
  uint64_t seed_;
  int64_t sequences_, turns_;
  double resolve_;
};

class TextBinding : public LanguageTask {
 public:
  TextBinding(const LlavaConfig& config, const TurnTokens& tokens, const LanguageTaskOptions& options, uint64_t seed,
              int64_t sequences, int64_t turns, double echo, double resolve)
      : LanguageTask(config, options),
        tokens_(tokens),
        seed_(seed),
        sequences_(sequences),
        turns_(turns),
        echo_(echo),
        resolve_(resolve) {}

  std::vector<std::string> topics() const override { return {"shape", "colour", "spot", "echo", "resolve"}; }

  TrainingBatch batch(int64_t number, bool is_evaluation) const override {
    Draw draw(seed_, std::string("text binding ") + purpose(is_evaluation), number);
    const int64_t places = config().vision.num_patches();
    BatchBuilder builder(tokens_, places);
    for (int64_t s = 0; s < sequences_; ++s) add_sequence(builder, draw, places);
    return builder.finish();
  }

 private:
  void add_sequence(BatchBuilder& builder, Draw& draw, int64_t places) const {
    const auto attribute = static_cast<Attribute>(draw.below(synth::kNumAttributes));
    const std::vector<std::string> words = draw_words(draw, attribute, synth::kNumClasses);
    builder.begin_sequence();
    std::set<int64_t> seen;
    for (int64_t t = 0; t < turns_; ++t) {
      const int64_t c = draw.below(synth::kNumClasses);
      const std::string name(class_name(attribute, c));
      const std::vector<ImageSlot> slots = {{.place = places - 1, .word = tokens_.word(name)}};
      if (attribute != Attribute::kSpot && seen.contains(c) && draw.chance(resolve_)) {
        // The picture holds a word of the other attribute: the answer stands in the examples alone.
        const auto other = attribute == Attribute::kShape ? Attribute::kColour : Attribute::kShape;
        const std::string shown(class_name(other, draw.below(synth::kNumClasses)));
        builder.add_turn(ask_class_of(attribute, words[static_cast<size_t>(c)]), name,
                         {{.place = places - 1, .word = tokens_.word(shown)}}, true, 4);
      } else if (draw.chance(echo_)) {
        builder.add_turn(synth::ask(attribute), name, slots, true, 3);
      } else {
        const bool is_known = !seen.insert(c).second;
        builder.add_turn(synth::ask_name(attribute), words[static_cast<size_t>(c)], slots, is_known,
                         static_cast<int>(attribute));
      }
    }
  }

  const TurnTokens& tokens_;
  uint64_t seed_;
  int64_t sequences_, turns_;
  double echo_, resolve_;
};

}  // namespace

std::string_view class_name(Attribute attribute, int64_t c) {
  return attribute == Attribute::kShape ? synth::kShapeNames[static_cast<size_t>(c)]
                                        : synth::kColourNames[static_cast<size_t>(c)];
}

std::string ask_class_of(Attribute attribute, const std::string& word) {
  return attribute == Attribute::kShape ? synth::ask_shape_of(word) : synth::ask_colour_of(word);
}

std::vector<std::string> draw_words(Draw& draw, Attribute attribute, int64_t count) {
  std::vector<std::string> words;
  for (int w = 0; w < synth::kNumMadeUpWords; ++w)
    if (!synth::is_held_out(attribute, w)) words.emplace_back(synth::kMadeUpWords[static_cast<size_t>(w)]);
  draw.shuffle(words);
  words.resize(static_cast<size_t>(count));
  return words;
}

std::unique_ptr<LanguageTask> copying_task(const LlavaConfig& config, const TurnTokens& tokens,
                                           const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                           int64_t length) {
  return std::make_unique<Copying>(config, tokens, options, seed, sequences, length);
}

std::unique_ptr<LanguageTask> short_turns_task(const LlavaConfig& config, const TurnTokens& tokens,
                                               const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                               int64_t turns, double resolve) {
  return std::make_unique<ShortTurns>(config, tokens, options, seed, sequences, turns, resolve);
}

std::unique_ptr<LanguageTask> text_binding_task(const LlavaConfig& config, const TurnTokens& tokens,
                                                const LanguageTaskOptions& options, uint64_t seed, int64_t sequences,
                                                int64_t turns, double echo, double resolve) {
  return std::make_unique<TextBinding>(config, tokens, options, seed, sequences, turns, echo, resolve);
}

}  // namespace espalier
