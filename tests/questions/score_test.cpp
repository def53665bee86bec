// SPDX-License-Identifier: Apache-2.0
#include "questions/score.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "espalier/error.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

GivenAnswer answer(const std::string& id, const std::string& text, const std::string& policy = "none") {
  return {.question_id = id, .prompt = "?", .text = text, .model_id = "m", .policy = policy, .finish_reason = "eos"};
}

// What VQA's script makes of these, worked out by hand from its rules.
TEST(Score, AnswersAreNormalisedAsVqaDoes) {
  for (const auto& [raw, normal] : std::vector<std::pair<std::string, std::string>>{{"The  Cat.", "cat"},
                                                                                    {"a red\nbus", "red bus"},
                                                                                    {"two", "2"},
                                                                                    {"none", "0"},
                                                                                    {"don't", "dont"},
                                                                                    {"black/white", "black white"},
                                                                                    {"black / white", "black white"},
                                                                                    {"yes, it is", "yes it is"},
                                                                                    {"1,000", "1000"},
                                                                                    {"2.5", "2.5"},
                                                                                    {"Coca-Cola!", "coca cola"},
                                                                                    {"?", ""}})
    EXPECT_EQ(normalised_answer(raw), normal) << raw;
}

// Of ten people: right when three others said so, a third for each; averaged over whom one leaves out.
TEST(Score, VqaCountsPeople) {
  std::vector<std::string> people(10, "no");
  EXPECT_DOUBLE_EQ(vqa_accuracy("No.", people), 1);
  EXPECT_DOUBLE_EQ(vqa_accuracy("yes", people), 0);
  people[0] = "yes";
  EXPECT_DOUBLE_EQ(vqa_accuracy("yes", people), 0.3);  // nine sets have one of it, one has none
  people[1] = "Yes";
  EXPECT_DOUBLE_EQ(vqa_accuracy("yes", people), 0.6);  // eight have two, two have one
  people[2] = people[3] = "yes";
  EXPECT_DOUBLE_EQ(vqa_accuracy("yes", people), 1);
  EXPECT_DOUBLE_EQ(vqa_accuracy("a dog", {"Dog"}), 1);
}

TEST(Score, PopeReadsTheFirstSentence) {
  for (const char* no : {"No", "no", "No, there is none.", "There is not a cat", "It is no cat. Yes."})
    EXPECT_FALSE(says_yes(no)) << no;
  for (const char* yes : {"Yes", "yes", "Yes. No", "nothing", "There is a cat", ""}) EXPECT_TRUE(says_yes(yes)) << yes;
}

TEST(Score, OfEachPolicy) {
  const TemporaryFolder folder;
  const Expected expected = read_expected(folder.write("pope.jsonl", R"({"question_id": 1, "label": "yes"}
{"question_id": 2, "label": "no"}
{"question_id": 3, "label": "yes"}
{"question_id": 4, "label": "no"})"));
  const std::vector<GivenAnswer> answers = {
      answer("1", "Yes"), answer("2", "Yes"),         answer("3", "No"),          answer("4", "No"),
      answer("9", "Yes"), answer("1", "Yes", "catp"), answer("3", "yes", "catp"), answer("2", "no", "catp")};
  const std::vector<AnswerScore> scores = score_answers(answers, expected, Scorer::kPope);
  ASSERT_EQ(scores.size(), 2U);
  EXPECT_EQ(scores[0].policy, "none");
  EXPECT_EQ(scores[0].n, 4);
  EXPECT_DOUBLE_EQ(scores[0].accuracy, 0.5);
  EXPECT_DOUBLE_EQ(scores[0].precision, 0.5);
  EXPECT_DOUBLE_EQ(scores[0].recall, 0.5);
  EXPECT_DOUBLE_EQ(scores[0].f1, 0.5);
  EXPECT_DOUBLE_EQ(scores[0].yes_share, 0.5);
  EXPECT_DOUBLE_EQ(scores[1].accuracy, 1);
  EXPECT_DOUBLE_EQ(scores[1].yes_share, 2.0 / 3);
  EXPECT_ERROR(score_answers({answer("8", "x")}, expected, Scorer::kPope), "none of its questions");
  EXPECT_NE(score_text(scores[0], Scorer::kPope).find("F1 50.00 %"), std::string::npos);
}

TEST(Score, ReadsVqasAnnotations) {
  const TemporaryFolder folder;
  const Expected expected = read_expected(folder.write(
      "v2.json", R"({"info": {}, "annotations": [{"question_id": 7, "answers": [{"answer": "net", "answer_id": 1},)"
                 R"( {"answer": "net", "answer_id": 2}]}]})"));
  EXPECT_EQ(expected.at("7"), (std::vector<std::string>{"net", "net"}));
  EXPECT_ERROR(read_expected(folder.write("a.jsonl", R"({"question_id": 7})")), "answers");
  EXPECT_ERROR(read_expected(folder.write("b.jsonl", R"({"question_id": 7, "answers": []})")), "one answer or more");
}

}  // namespace
}  // namespace espalier
