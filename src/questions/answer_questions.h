// SPDX-License-Identifier: Apache-2.0
// Asks an engine all questions of a file under several policies, several at a time, and writes each answer down. What
// the file holds already is not asked again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "questions/answer_file.h"
#include "questions/question_file.h"

namespace espalier {

class PruningPolicy;

struct Asking {
  std::vector<Question> questions;
  std::vector<std::shared_ptr<const PruningPolicy>> policies;  // each question is asked under each of them
  GenerationOptions generation;
  std::string model_id;  // goes into the answers
  size_t at_once = 8;    // requests that run together
  int64_t kv_bytes = 0;  // of their keys and values; 0: no limit
};

struct AskingProgress {
  std::function<void(int64_t done, int64_t total)> show = {};  // `done` counts those found in the file
  std::function<bool()> should_cancel = {};
};

struct AskingResult {
  int64_t total = 0, found = 0, answered = 0;  // of all; already in the file; now
  bool is_complete = true;                     // false: cancelled; the same call goes on
};

// Answers come in the order of the questions, policies in turn, whatever order they end in: scripts that score them
// read them beside the questions. Throws Error when the file holds answers of another model, and what a request throws,
// naming the question; what was answered until then is in the file.
AskingResult answer_questions(const Engine& engine, const Asking& asking, AnswerFile& file,
                              const AskingProgress& progress);

}  // namespace espalier
