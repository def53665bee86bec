// SPDX-License-Identifier: Apache-2.0
// The file that answers go to, one line each as soon as it is known, in LLaVA's form: a run that was cut short at any
// moment goes on where it ended.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

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
  // Opens what is there, or makes it. A last line without its end was cut short and is dropped. Throws Error when it
  // cannot be written, another process writes it, or a line is no answer.
  explicit AnswerFile(std::filesystem::path file);
  ~AnswerFile();
  AnswerFile(const AnswerFile&) = delete;
  AnswerFile& operator=(const AnswerFile&) = delete;

  const std::filesystem::path& path() const { return file_; }
  // All that it holds, what it held when it was opened among it.
  const std::vector<GivenAnswer>& all() const { return all_; }
  // In one write behind all that is there: a reader sees whole lines only.
  void add(const GivenAnswer& answer);
  void finish();  // all lines are on the disk

 private:
  std::filesystem::path file_;
  int descriptor_ = -1;
  std::vector<GivenAnswer> all_;
};

}  // namespace espalier
