// SPDX-License-Identifier: Apache-2.0
#include "questions/score.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/json_lines.h"
#include "espalier/error.h"

namespace espalier {

namespace {

using nlohmann::json;

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string id_of(const JsonFields& fields) {
  const json* id = fields.find("question_id");
  if (!id || !(id->is_string() || id->is_number_integer())) fields.fail("question_id", "a whole number or a string");
  return id->dump();
}

std::vector<std::string> people_of(const JsonFields& fields) {
  if (const auto label = fields.string("label")) return {*label};
  std::vector<std::string> people;
  for (const json& one : fields.list_at("answers")) {
    if (one.is_string())
      people.push_back(one.get<std::string>());
    else if (one.is_object() && one.contains("answer") && one["answer"].is_string())
      people.push_back(one["answer"].get<std::string>());
    else
      fields.fail("answers", "texts, or objects with \"answer\"");
  }
  if (people.empty()) fields.fail("answers", "one answer or more");
  return people;
}

// A mark goes where it stands beside a space, or where the text has digits parted by a comma; else it parts words.
std::string without_marks(const std::string& text) {
  constexpr std::string_view kMarks = ";/[]\"{}()=+\\_-><@`,?!";
  bool has_thousands = false;
  for (size_t i = 1; i + 1 < text.size(); ++i)
    has_thousands |= text[i] == ',' && is_digit(text[i - 1]) && is_digit(text[i + 1]);
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\'') continue;
    if (c == '.' && !(i + 1 < text.size() && is_digit(text[i + 1]))) continue;  // the point of a number stays
    if (kMarks.find(c) == std::string_view::npos) {
      out += c;
      continue;
    }
    const std::string before = std::string(" ") + c, behind = std::string(1, c) + " ";
    const bool is_beside_space = text.find(before) != std::string::npos || text.find(behind) != std::string::npos;
    if (!is_beside_space && !has_thousands) out += ' ';
  }
  return out;
}

std::string word_of(const std::string& word) {
  constexpr std::array<std::string_view, 11> kNumbers = {"zero", "one",   "two",   "three", "four", "five",
                                                         "six",  "seven", "eight", "nine",  "ten"};
  if (word == "none") return "0";
  const auto* const found = std::ranges::find(kNumbers, word);
  return found == kNumbers.end() ? word : std::to_string(found - kNumbers.begin());
}

std::string formatted(const char* pattern, double value) {
  std::array<char, 64> text{};
  std::snprintf(text.data(), text.size(), pattern, value);
  return text.data();
}

// Right, wrong, and both of them where the answer was yes.
struct Counts {
  int64_t true_yes = 0, false_yes = 0, true_no = 0, false_no = 0;
};

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

void finish(AnswerScore& score, const Counts& c, Scorer scorer) {
  if (scorer == Scorer::kVqa) {
    score.accuracy /= static_cast<double>(score.n);
    return;
  }
  score.accuracy = share(c.true_yes + c.true_no, score.n);
  score.precision = share(c.true_yes, c.true_yes + c.false_yes);
  score.recall = share(c.true_yes, c.true_yes + c.false_no);
  const double sum = score.precision + score.recall;
  score.f1 = sum > 0 ? 2 * score.precision * score.recall / sum : 0;
  score.yes_share = share(c.true_yes + c.false_yes, score.n);
}

}  // namespace

Expected read_expected(const std::filesystem::path& file) {
  const std::string text = read_text_file(file, limits::kDataFileBytes), name = file.string();
  Expected expected;
  if (file.extension() == ".json") {
    const json whole = parse_json(text, name);
    const JsonFields root(whole, name);
    for (const JsonFields& one : root.objects_at("annotations")) expected[id_of(one)] = people_of(one);
    return expected;
  }
  for (const auto& [line, where] : json_lines(text, name)) {
    const JsonFields fields(line, where);
    expected[id_of(fields)] = people_of(fields);
  }
  return expected;
}

std::string normalised_answer(std::string_view text) {
  std::string lower(text);
  for (char& c : lower)
    c = c == '\n' || c == '\t' ? ' ' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  const size_t first = lower.find_first_not_of(' ');
  lower = first == std::string::npos ? "" : lower.substr(first, lower.find_last_not_of(' ') + 1 - first);
  std::istringstream words(without_marks(lower));
  std::string out;
  for (std::string word; words >> word;)
    if (word != "a" && word != "an" && word != "the") out += (out.empty() ? "" : " ") + word_of(word);
  return out;
}

double vqa_accuracy(std::string_view answer, const std::vector<std::string>& people) {
  const std::string mine = normalised_answer(answer);
  std::vector<bool> agrees;
  for (const std::string& one : people) agrees.push_back(normalised_answer(one) == mine);
  const auto all = std::ranges::count(agrees, true);
  if (people.size() == 1) return static_cast<double>(all);
  double sum = 0;
  for (const bool is_equal : agrees) sum += std::min(1.0, static_cast<double>(all - is_equal) / 3);
  return sum / static_cast<double>(people.size());
}

bool says_yes(std::string_view answer) {
  std::string sentence(answer.substr(0, answer.find('.')));
  std::erase(sentence, ',');
  std::istringstream words(sentence);
  for (std::string word; words >> word;)
    if (word == "No" || word == "not" || word == "no") return false;
  return true;
}

std::vector<AnswerScore> score_answers(const std::vector<GivenAnswer>& answers, const Expected& expected,
                                       Scorer scorer) {
  std::vector<AnswerScore> scores;
  std::vector<Counts> counts;
  for (const GivenAnswer& answer : answers) {
    const auto people = expected.find(answer.question_id);
    if (people == expected.end()) continue;
    auto score = std::ranges::find(scores, answer.policy, &AnswerScore::policy);
    if (score == scores.end()) {
      scores.push_back({.policy = answer.policy});
      counts.emplace_back();
      score = std::prev(scores.end());
    }
    ++score->n;
    if (scorer == Scorer::kVqa) {
      score->accuracy += vqa_accuracy(answer.text, people->second);
      continue;
    }
    Counts& c = counts[static_cast<size_t>(score - scores.begin())];
    const bool is_yes = says_yes(people->second.front());
    ++(says_yes(answer.text) ? (is_yes ? c.true_yes : c.false_yes) : (is_yes ? c.false_no : c.true_no));
  }
  if (scores.empty()) throw Error("--expected: none of its questions has an answer");
  for (size_t i = 0; i < scores.size(); ++i) finish(scores[i], counts[i], scorer);
  return scores;
}

nlohmann::ordered_json to_json(const AnswerScore& score, Scorer scorer) {
  nlohmann::ordered_json json = {{"policy", score.policy}, {"n", score.n}, {"accuracy", score.accuracy}};
  if (scorer == Scorer::kPope)
    json.update(
        {{"precision", score.precision}, {"recall", score.recall}, {"f1", score.f1}, {"yes_share", score.yes_share}});
  return json;
}

std::string score_text(const AnswerScore& score, Scorer scorer) {
  std::string text =
      score.policy + ": " + formatted("%.2f %% right of ", 100 * score.accuracy) + std::to_string(score.n);
  if (scorer == Scorer::kPope)
    text += formatted(", precision %.2f %%", 100 * score.precision) +
            formatted(", recall %.2f %%", 100 * score.recall) + formatted(", F1 %.2f %%", 100 * score.f1) +
            formatted(", yes %.2f %%", 100 * score.yes_share);
  return text + "\n";
}

}  // namespace espalier
