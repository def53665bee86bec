// SPDX-License-Identifier: Apache-2.0
#include "questions/answer_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "espalier/error.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

GivenAnswer answer(const std::string& id, const std::string& text) {
  return {.question_id = id,
          .prompt = "Is it?\nYes or no.",
          .text = text,
          .model_id = "demo",
          .policy = "catp:keep_ratio=2/9",
          .prompt_tokens = 84,
          .image_tokens = 64,
          .new_tokens = 2,
          .image_tokens_mean = 14.5,
          .finish_reason = "eos"};
}

std::string whole(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

TEST(AnswerFile, LinesAreLlavas) {
  const TemporaryFolder folder;
  const auto file = folder / "a.jsonl";
  {
    AnswerFile out(file);
    EXPECT_TRUE(out.all().empty());
    out.add(answer("7", "Yes"));
    out.add(answer("\"code/0020.png\"", "No\n\xff"));
  }
  std::istringstream lines(whole(file));
  std::string first, second, rest;
  ASSERT_TRUE(std::getline(lines, first) && std::getline(lines, second) && !std::getline(lines, rest));
  const auto a = nlohmann::json::parse(first), b = nlohmann::json::parse(second);
  EXPECT_EQ(a["question_id"], 7);
  EXPECT_EQ(b["question_id"], "code/0020.png");
  EXPECT_EQ(a["prompt"], "Is it?\nYes or no.");
  EXPECT_EQ(a["text"], "Yes");
  EXPECT_EQ(a["model_id"], "demo");
  EXPECT_EQ(a["metadata"]["policy"], "catp:keep_ratio=2/9");
  EXPECT_EQ(a["metadata"]["image_tokens"], 64);
  EXPECT_EQ(a["metadata"]["image_tokens_mean"], 14.5);
  EXPECT_EQ(a["metadata"]["schema"], 1);
  EXPECT_NE(a["answer_id"], b["answer_id"]);
  EXPECT_EQ(a["answer_id"].get<std::string>().size(), 22U);
}

// What a kill left of a line is dropped; whole lines stay, and what comes stands behind them.
TEST(AnswerFile, GoesOnBehindTheLastWholeLine) {
  const TemporaryFolder folder;
  const auto file = folder / "a.jsonl";
  { AnswerFile(file).add(answer("1", "Yes")); }
  const std::string one = whole(file);
  for (size_t length = 0; length < one.size(); length += 7) {
    std::ofstream(file, std::ios::binary) << one << one.substr(0, length);
    {
      AnswerFile out(file);
      ASSERT_EQ(out.all().size(), 1U) << length;
      EXPECT_EQ(out.all()[0].question_id, "1");
      EXPECT_EQ(out.all()[0].text, "Yes");
      EXPECT_EQ(out.all()[0].policy, "catp:keep_ratio=2/9");
      EXPECT_EQ(whole(file), one) << length;
      out.add(answer("2", "No"));
    }
    EXPECT_EQ(AnswerFile(file).all().size(), 2U) << length;
  }
}

TEST(AnswerFile, RefusesWhatItCannotGoOnWith) {
  const TemporaryFolder folder;
  EXPECT_ERROR(AnswerFile(folder / "nowhere" / "a.jsonl"), "cannot write");
  EXPECT_ERROR(AnswerFile(folder.write("b.jsonl", "{\"question_id\": 1, \"text\": \"x\"}\n")), "metadata");
  EXPECT_ERROR(AnswerFile(folder.write("c.jsonl", "no json\n")), "c.jsonl line 1");
  EXPECT_EQ(whole(folder / "c.jsonl"), "no json\n");
  const AnswerFile mine(folder / "d.jsonl");
  EXPECT_ERROR(AnswerFile(folder / "d.jsonl"), "another process writes it");
}

}  // namespace
}  // namespace espalier
