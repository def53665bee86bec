// SPDX-License-Identifier: Apache-2.0
// `espalier answer` as a user runs it; what it should say comes from `espalier generate`.
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line, nullptr, false));
  return lines;
}

const Arguments kOptions = {"--model", kModel.string(), "--dtype", "f32", "--greedy", "--max-new-tokens", "6"};
const std::vector<std::string> kPictures = {"56x56_shapes_33.png", "30x30_shapes_12.png", "64x61_lines_22.png"};
const std::vector<std::string> kPolicies = {"none", "fastv:keep_ratio=1/2,layer=3"};

class Answer : public testing::Test {
 protected:
  Answer() {
    std::string text;
    for (size_t i = 0; i < 7; ++i) {
      json question = {{"question_id", i + 40}, {"text", "What is shown in image " + std::to_string(i) + "?"}};
      if (i != 3) question["image"] = kPictures[i % kPictures.size()];  // one is about text alone
      questions_.push_back(question);
      text += question.dump() + "\n";
    }
    file_ = folder_.write("questions.jsonl", text);
  }

  Arguments command() const {
    Arguments arguments = {"answer",      "--questions", file_, "--image-folder", (kCases / "images").string(), "--out",
                           out_.string(), "--requests",  "3"};
    for (const std::string& policy : kPolicies) arguments = arguments + Arguments{"--policy", policy};
    return arguments + kOptions;
  }

  json alone(const json& question, const std::string& policy) const {
    Arguments arguments = {"generate", "--json", "--policy", policy, "--prompt", question["text"]};
    if (question.contains("image"))
      arguments = arguments + Arguments{"--image", (kCases / "images" / question["image"]).string()};
    return json_of(arguments + kOptions);
  }

  const TemporaryFolder folder_;
  std::filesystem::path file_, out_ = folder_ / "answers.jsonl";
  std::vector<json> questions_;
};

TEST_F(Answer, EachAsGenerateInTheOrderOfTheQuestions) {
  const std::string said = output_of(command());
  EXPECT_NE(said.find("14 of 14 answers are in"), std::string::npos) << said;
  const std::vector<json> answers = lines_of(read_whole(out_));
  ASSERT_EQ(answers.size(), questions_.size() * kPolicies.size());
  for (size_t i = 0; i < answers.size(); ++i) {
    const json& question = questions_[i / kPolicies.size()];
    const json one = alone(question, kPolicies[i % kPolicies.size()]);
    EXPECT_EQ(answers[i]["question_id"], question["question_id"]);
    EXPECT_EQ(answers[i]["prompt"], question["text"]);
    EXPECT_EQ(answers[i]["text"], one["text"]) << i;
    EXPECT_EQ(answers[i]["model_id"], "llava15");
    EXPECT_EQ(answers[i]["metadata"]["policy"], kPolicies[i % kPolicies.size()]);
    EXPECT_EQ(answers[i]["metadata"]["prompt_tokens"], one["stats"]["prompt_tokens"]);
    EXPECT_EQ(answers[i]["metadata"]["new_tokens"], one["stats"]["new_tokens"]);
  }
}

// Cut anywhere, also within a line, the file comes to the same bytes again; and nothing is asked twice.
TEST_F(Answer, GoesOnWhereItWasCut) {
  output_of(command());
  const std::string whole = read_whole(out_);
  EXPECT_NE(output_of(command()).find("14 of them from before"), std::string::npos);
  EXPECT_EQ(read_whole(out_), whole);
  size_t third_end = 0;
  for (int i = 0; i < 3; ++i) third_end = whole.find('\n', third_end) + 1;
  for (const size_t length : {size_t{0}, third_end, third_end + 20}) {
    std::ofstream(out_, std::ios::binary) << whole.substr(0, length);
    const json summary = json_of(command() + Arguments{"--json"});
    EXPECT_EQ(summary["found"], length < third_end ? 0 : 3);
    EXPECT_EQ(summary["answered"], length < third_end ? 14 : 11);
    EXPECT_EQ(read_whole(out_), whole) << length;
  }
}

// Scored against what it says itself, everything is right.
TEST_F(Answer, IsScored) {
  output_of(command());
  std::string labels;
  for (const json& a : lines_of(read_whole(out_)))
    if (a["metadata"]["policy"] == "none")
      labels += json{{"question_id", a["question_id"]}, {"answers", {a["text"]}}}.dump() + "\n";
  const std::string file = folder_.write("expected.jsonl", labels).string();
  const json summary = json_of(command() + Arguments{"--expected", file, "--json"});
  ASSERT_EQ(summary["scores"].size(), kPolicies.size());
  EXPECT_EQ(summary["scores"][0]["policy"], "none");
  EXPECT_EQ(summary["scores"][0]["n"], 7);
  EXPECT_EQ(summary["scores"][0]["accuracy"], 1.0);
  const std::string text = output_of(command() + Arguments{"--expected", file, "--scorer", "pope"});
  EXPECT_NE(text.find("none: 100.00 % right of 7, precision"), std::string::npos) << text;
}

TEST_F(Answer, InterruptKeepsWhatIsFinished) {
  std::string many;
  for (int i = 0; i < 400; ++i) many += json{{"question_id", i}, {"text", "Say " + std::to_string(i)}}.dump() + "\n";
  folder_.write("questions.jsonl", many);
  EspalierProcess process(Arguments{"answer", "--questions", file_, "--out", out_.string(), "--model", kModel.string(),
                                    "--greedy", "--ignore-eos", "--max-new-tokens", "60", "--requests", "2"});
  for (int i = 0; i < 6000 && read_whole(out_).empty(); ++i) ::usleep(10'000);
  process.interrupt();
  const Outcome outcome = process.wait();
  EXPECT_EQ(outcome.status, 130);
  EXPECT_NE(outcome.err.find("of 400 answers are in"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("the same command goes on"), std::string::npos);
  const std::string kept = read_whole(out_);
  ASSERT_TRUE(kept.ends_with('\n'));
  const std::vector<json> answers = lines_of(kept);
  EXPECT_GE(answers.size(), 1U);
  EXPECT_LT(answers.size(), 400U);
  for (size_t i = 0; i < answers.size(); ++i) {
    EXPECT_EQ(answers[i]["question_id"], i);
    EXPECT_EQ(answers[i]["metadata"]["finish_reason"], "length");
  }
}

TEST_F(Answer, BadInputIsOneLine) {
  const Arguments base = {"answer", "--questions", file_, "--out", out_.string(), "--model", kModel.string()};
  const auto refused = [&](const Arguments& arguments, const std::string& part) {
    const Outcome outcome = run_espalier(arguments);
    EXPECT_EQ(outcome.status, 2) << outcome.err;
    EXPECT_EQ(std::ranges::count(outcome.err, '\n'), 1) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << outcome.err;
  };
  refused(base, "there is no picture");  // pictures are beside the questions unless said otherwise
  refused(base + Arguments{"--image-folder", (kCases / "images").string(), "--policy", "nosuch"}, "nosuch");
  refused({"answer", "--questions", file_, "--out", file_}, "");
  folder_.write("answers.jsonl", R"({"question_id": 40, "prompt": "x", "text": "y", "model_id": "other", "metadata": )"
                                 R"({"policy": "none"}})"
                                 "\n");
  refused(base + Arguments{"--image-folder", (kCases / "images").string()}, "answers of the model other");
}

}  // namespace
}  // namespace espalier::test
