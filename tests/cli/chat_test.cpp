// SPDX-License-Identifier: Apache-2.0
// Conversations in the terminal, and several prompts in one go.
#include <gtest/gtest.h>

#include "tests/cli/golden_case.h"
#include "tests/cli/run_espalier.h"

namespace espalier::test {
namespace {

using nlohmann::json;

const Arguments kModelAndLength = {"--model", kModel.string(), "--dtype", "f32", "--greedy", "--max-new-tokens", "6"};

// A chat file of `turns`, user and assistant by turns; the first brings the picture.
std::filesystem::path chat_file(const TemporaryFolder& folder, const std::string& name, const std::string& image,
                                const std::vector<std::string>& turns) {
  json messages = json::array();
  for (size_t i = 0; i < turns.size(); ++i) {
    json content = json::array();
    if (i == 0) content.push_back({{"type", "image"}, {"path", image}});
    content.push_back({{"type", "text"}, {"text", turns[i]}});
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", content}});
  }
  const std::filesystem::path file = folder / name;
  std::ofstream(file) << messages;
  return file;
}

std::vector<json> lines_of(const std::string& text) {
  std::vector<json> lines;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    lines.push_back(json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return lines;
}

std::string any_picture() {
  return (source_folder() / "examples/demo/shape/0.png").string();
}

// Answers come in order, each as alone; what they share is computed once and changes nothing.
TEST(Chats, SeveralInOneGo) {
  const TemporaryFolder folder;
  const std::string image = any_picture();
  const std::vector<std::string> shared = {"What is this?", "a cat"};
  const auto a = chat_file(folder, "a.json", image, {shared[0], shared[1], "Where is it?"});
  const auto b = chat_file(folder, "b.json", image, {shared[0], shared[1], "What colour does it have?"});
  const Arguments common =
      Arguments{"generate", "--json", "--policy", "fastv:keep_ratio=1/2,layer=3"} + kModelAndLength;
  for (const Arguments& cache : {Arguments{}, Arguments{"--prefix-cache", "100000000"}}) {
    const std::vector<json> both =
        lines_of(output_of(common + cache + Arguments{"--chat", a.string(), "--chat", b.string()}));
    ASSERT_EQ(both.size(), 2U);
    const std::filesystem::path files[] = {a, b};
    for (size_t i = 0; i < 2; ++i) {
      const json alone = json_of(common + Arguments{"--chat", files[i].string()});
      for (const char* key : {"token_ids", "text", "kept", "prompt"}) EXPECT_EQ(both[i][key], alone[key]) << key;
      EXPECT_EQ(both[i]["stats"]["tokens_per_layer"], alone["stats"]["tokens_per_layer"]);
    }
    EXPECT_EQ(both[0]["stats"]["reused_tokens"], 0);
    EXPECT_EQ(both[1]["stats"]["reused_tokens"] > 0, !cache.empty());
  }
  const Outcome two = run_espalier(Arguments{"inspect", "--policy", "none", "--out", folder / "page.html"} +
                                   Arguments{"--model", kModel.string(), "--chat", a.string(), "--chat", b.string()});
  EXPECT_EQ(two.status, 2);
  EXPECT_NE(two.err.find("one prompt, got 2"), std::string::npos) << two.err;
}

// Each line is a turn; the conversation is that of one prompt with all turns.
TEST(Chats, ATurnPerLine) {
  const TemporaryFolder folder;
  const std::string image = any_picture();
  const Arguments chat = Arguments{"chat", "--stats"} + kModelAndLength;
  const Outcome talk = run_espalier(chat, "/image " + image + "\nWhat is this?\n\nAnd where?\n/quit\nnot asked\n");
  EXPECT_EQ(talk.status, 0) << talk.err;
  const Arguments generate = Arguments{"generate"} + kModelAndLength;
  const std::string first =
      output_of(generate + Arguments{"--chat", chat_file(folder, "1.json", image, {"What is this?"})});
  const std::string second = output_of(
      generate + Arguments{"--chat", chat_file(folder, "2.json", image,
                                               {"What is this?", first.substr(0, first.size() - 1), "And where?"})});
  EXPECT_EQ(talk.out, first + second);
  EXPECT_NE(talk.err.find("tokens by layer"), std::string::npos);
  EXPECT_EQ(run_espalier(chat, "/image nowhere.png\nWhat?\n").status, 2);
  EXPECT_EQ(run_espalier(Arguments{"chat", "--policy", "magic"} + kModelAndLength, "Hello\n").status, 2);
}

}  // namespace
}  // namespace espalier::test
