// SPDX-License-Identifier: Apache-2.0
// The file that answers go to, one line each as soon as it is known, in LLaVA's form: a run that was cut short at any
// moment goes on where it ended.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "base/line_file.h"

namespace espalier {

// One answer. `question_id` is JSON, as Question::id.
struct GivenAnswer {
  std::string question_id;
  std::string prompt;  // the question
  std::string text;
  std::string model_id;
  std::string policy;  // its spec
  // What the run says of itself: prompt tokens, image tokens at entry and mean over layers, new tokens.
  int64_t prompt_tokens = 0, image_tokens = 0, new_tokens = 0;
  double image_tokens_mean = 0;
  std::string finish_reason;
};

class AnswerFile {
 public:
  // Opens what is there, or makes it. Throws as LineFile does, and Error when a line is no answer.
  explicit AnswerFile(std::filesystem::path file);

  const std::filesystem::path& path() const { return lines_.path(); }
  // All that it holds, what it held when it was opened among it.
  const std::vector<GivenAnswer>& all() const { return all_; }
  void add(const GivenAnswer& answer);
  void finish() { lines_.finish(); }  // all lines are on the disk

 private:
  LineFile lines_;
  std::vector<GivenAnswer> all_;
};

}  // namespace espalier
