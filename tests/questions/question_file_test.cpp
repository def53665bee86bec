// SPDX-License-Identifier: Apache-2.0
#include "questions/question_file.h"

#include <gtest/gtest.h>

#include <string>

#include "espalier/error.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

class QuestionFile : public testing::Test {
 protected:
  std::vector<Question> read(const std::string& text) {
    return read_questions(folder_.write("q.jsonl", text), folder_.path() / "pictures");
  }

  QuestionFile() {
    folder_.write("pictures/a.png", "x");
    folder_.write("pictures/sub/b.jpg", "x");
  }

  TemporaryFolder folder_;
};

// Lines as POPE, MME and ScienceQA have them in LLaVA's playground.
TEST_F(QuestionFile, LlavasLines) {
  const auto questions = read(
      "{\"question_id\": 7, \"image\": \"a.png\", \"text\": \"Is there a cat?\\nAnswer yes or no.\", \"category\": "
      "\"random\"}\n\n"
      "{\"question_id\": \"code/0020.png\", \"image\": \"sub/b.jpg\", \"text\": \"é\"}\r\n"
      "{\"question_id\": \"4\", \"text\": \"Which?\\nA. x\"}\n"
      "{\"question_id\": 5, \"image\": [\"a.png\", \"sub/b.jpg\"], \"text\": \"What differs?\"}");
  ASSERT_EQ(questions.size(), 4U);
  EXPECT_EQ(questions[0].id, "7");
  EXPECT_EQ(questions[0].text, "Is there a cat?\nAnswer yes or no.");
  EXPECT_EQ(questions[0].images, std::vector{folder_.path() / "pictures" / "a.png"});
  EXPECT_EQ(questions[1].id, "\"code/0020.png\"");
  EXPECT_EQ(questions[1].text, "é");
  EXPECT_EQ(questions[2].id, "\"4\"") << "a string stays one: 4 and \"4\" are two ids";
  EXPECT_TRUE(questions[2].images.empty());
  EXPECT_EQ(questions[3].images.size(), 2U);
}

TEST_F(QuestionFile, SaysWhatIsWrongAndWhere) {
  const std::string good = "{\"question_id\": 1, \"text\": \"x\"}\n";
  EXPECT_ERROR(read(good + "{\"text\": \"x\"}"), "line 2: field \"question_id\": expected a whole number or a string");
  EXPECT_ERROR(read(good + "{\"question_id\": 1.5, \"text\": \"x\"}"), "line 2: field \"question_id\"");
  EXPECT_ERROR(read("{\"question_id\": 1}"), "line 1: field \"text\"");
  EXPECT_ERROR(read("{\"question_id\": 1, \"text\": \"x\", \"image\": 3}"), "field \"image\": expected a path");
  EXPECT_ERROR(read("{\"question_id\": 1, \"text\": \"x\", \"image\": \"c.png\"}"), "there is no picture");
  EXPECT_ERROR(read(good + "{\"question_id\": 1,"), "line 2");
  EXPECT_ERROR(read("\n"), "there is no question in it");
}

}  // namespace
}  // namespace espalier
