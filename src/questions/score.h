// SPDX-License-Identifier: Apache-2.0
// Grades answers as the benchmarks' own scripts do: yes or no as POPE counts, and VQA's accuracy of short answers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "questions/answer_file.h"

namespace espalier {

// What is right: by question id (as JSON) the answers that people gave, one or several.
using Expected = std::map<std::string, std::vector<std::string>>;

// One object a line, {"question_id", "label": text} (POPE's own files) or {"question_id", "answers": [text, …]}; or
// VQAv2's annotations, {"annotations": [{"question_id", "answers": [{"answer"}, …]}, …]}. Throws Error naming file and
// place.
Expected read_expected(const std::filesystem::path& file);

enum class Scorer : uint8_t {
  kVqa,   // what a person says of each answer: right as far as three others of the ten said so; one answer: exact match
  kPope,  // "no" where the first sentence has the word no, No or not, else "yes"
};

// The answers of one policy.
struct AnswerScore {
  std::string policy;
  int64_t n = 0;  // with something to compare; a question that comes twice counts twice
  double accuracy = 0;
  double precision = 0, recall = 0, f1 = 0, yes_share = 0;  // of yes; kPope alone
};

// Policy by policy, in the order of their first answers. Throws Error when no question of `expected` was answered.
std::vector<AnswerScore> score_answers(const std::vector<GivenAnswer>& answers, const Expected& expected,
                                       Scorer scorer);

nlohmann::ordered_json to_json(const AnswerScore& score, Scorer scorer);
std::string score_text(const AnswerScore& score, Scorer scorer);  // one line

// ---- parts ----

// As VQA compares answers: lower case, without punctuation and articles, numbers as digits. Apostrophes go too, so that
// "dont" is "don't", where VQA's script has a table of such words.
std::string normalised_answer(std::string_view text);
// In [0, 1].
double vqa_accuracy(std::string_view answer, const std::vector<std::string>& people);
bool says_yes(std::string_view answer);

}  // namespace espalier
