// SPDX-License-Identifier: Apache-2.0
// Packs sequences of turns into a TrainingBatch: ids, the positions that the whole picture would give, and which rows
// are scored. What is asked about which picture is the tasks' business.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "espalier/tokenizer.h"
#include "training/training_pass.h"

namespace espalier {

// Words, questions and turns as ids. Every word of the wording is one token, which the constructor checks.
class TurnTokens {
 public:
  explicit TurnTokens(const Tokenizer& tokenizer);

  // "USER: <image>\n{question} ASSISTANT: {answer}</s>", with the place of its parts.
  struct Turn {
    std::vector<int64_t> ids;
    size_t image = 0;   // index of <image>
    size_t answer = 0;  // index of the answer's one token
  };
  const Turn& turn(const std::string& question, const std::string& answer) const;
  int64_t word(const std::string& word) const;  // behind a space

  int64_t begin() const { return begin_; }
  int64_t end() const { return end_; }
  std::vector<int64_t> all_words() const;  // what can stand behind a space, for copying

 private:
  const Tokenizer& tokenizer_;
  int64_t begin_, end_, image_;
  mutable std::map<std::string, Turn> turns_;  // by text: there are few thousand
};

// One image token of a turn: where it stands among the picture's tokens, and what it is.
struct ImageSlot {
  int64_t place = 0;
  int64_t word = -1;     // the embedding of this id (text in place of a picture), or
  int64_t feature = -1;  // this row of the features
  int64_t says = -1;     // the id that this token is trained to say, at little weight; -1: nothing
};

inline constexpr int kNotCounted = -1;

class BatchBuilder {
 public:
  BatchBuilder(const TurnTokens& tokens, int64_t tokens_per_image)
      : tokens_(tokens), tokens_per_image_(tokens_per_image) {}

  void begin_sequence(int64_t first_position = 0);  // with <s>
  // `is_scored`: the answer counts in the loss, under `topic`; what the slots say counts under `slots_topic`.
  void add_turn(const std::string& question, const std::string& answer, const std::vector<ImageSlot>& slots,
                bool is_scored, int topic, int slots_topic = kNotCounted);
  // Plain ids, each scored (or not) as the target of the token before it.
  void add_text(const std::vector<int64_t>& ids, const std::vector<bool>& is_scored, int topic);

  void skip_positions(int64_t count) { position_ += count; }

  // `features` of the batch: left to the caller, by feature_rows().
  TrainingBatch finish();
  const std::vector<int64_t>& feature_rows() const { return feature_rows_; }

 private:
  void push(int64_t id);
  void score(int64_t row, int64_t target, double weight, int topic);

  const TurnTokens& tokens_;
  int64_t tokens_per_image_;
  int64_t position_ = 0;
  std::vector<int64_t> ids_, positions_, begin_ = {}, image_rows_, feature_rows_, scored_rows_, targets_;
  std::vector<float> weights_;
  std::vector<int> topics_;
};

// Cross-entropy over the scored rows, by their weights.
at::Tensor answer_loss(const at::Tensor& logits, const TrainingBatch& batch);

}  // namespace espalier
