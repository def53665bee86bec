// SPDX-License-Identifier: Apache-2.0
// Files of benchmark questions in LLaVA's form, as POPE, VQAv2, GQA, TextVQA, MME and others are handed around: one
// object a line. Pictures are not read here, so that a file may name more of them than memory holds.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace espalier {

struct Question {
  std::string id;  // `question_id` as JSON: 262144000, or "code_reasoning/0020.png" in quotes
  std::vector<std::filesystem::path> images;  // none: text alone
  std::string text;
  std::string where;  // file and line, to open a message about it
};

// {"question_id": a number or a string, "text": a string, "image": a path or a list of paths, or missing}; other fields
// are left alone. Paths are relative to `image_folder`. Throws Error naming file, line and field, also for a picture
// that is not there: better before the first question than behind the thousandth.
std::vector<Question> read_questions(const std::filesystem::path& file, const std::filesystem::path& image_folder);

}  // namespace espalier
