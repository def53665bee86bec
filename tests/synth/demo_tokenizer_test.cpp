// SPDX-License-Identifier: Apache-2.0
#include "synth/demo_tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "espalier/tokenizer.h"
#include "synth/items.h"
#include "synth/wording.h"
#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"
#include "text/chat_template.h"

namespace espalier::synth {
namespace {

using nlohmann::json;

class DemoTokenizerTest : public testing::Test {
 protected:
  explicit DemoTokenizerTest(Words words = Words::kDemo) : made_(demo_tokenizer(0, words)) {
    for (const FolderFile& file : made_.files) folder_.write(file.name, file.text);
  }
  std::vector<int32_t> ids(const std::string& text, bool add_special = true) const {
    return tokenizer().encode(text, add_special);
  }
  const Tokenizer& tokenizer() const {
    if (!loaded_) loaded_ = Tokenizer::load(folder_.path());
    return *loaded_;
  }
  // Ids that nobody could confuse: of a word behind the generation prompt.
  int32_t answer_id(std::string_view word) const {
    const std::vector<int32_t> all = ids("ASSISTANT: " + std::string(word), false);
    EXPECT_EQ(all.size(), 2u) << word;
    return all.back();
  }

  DemoTokenizer made_;
  TemporaryFolder folder_;

 private:
  mutable std::optional<Tokenizer> loaded_;
};

json golden() {
  return json::parse(std::ifstream(test::golden_folder() / "synth" / "tokens.json"));
}

std::vector<Message> messages_of(const json& chat) {
  std::vector<Message> messages;
  for (const json& turn : chat) {
    Message message{turn["role"], {}};
    for (const json& part : turn["content"])
      message.content.push_back(part["type"] == "text" ? Part(TextPart{part["text"]}) : Part(ImagePart{}));
    messages.push_back(std::move(message));
  }
  return messages;
}

TEST_F(DemoTokenizerTest, GivesTheIdsOfTransformers) {
  const json cases = golden()["texts"];
  ASSERT_GT(cases.size(), 30u);
  for (const json& c : cases) EXPECT_EQ(ids(c["text"]), c["ids"].get<std::vector<int32_t>>()) << c["text"];
}

TEST_F(DemoTokenizerTest, RendersChatsAsTransformers) {
  const ChatTemplate chat_template = ChatTemplate::load(folder_.path());
  const json cases = golden()["chats"];
  ASSERT_EQ(cases.size(), 3u);
  for (const json& c : cases) {
    const std::string text = chat_template.render(messages_of(c["messages"])).text;
    EXPECT_EQ(text, c["text"]);
    EXPECT_EQ(ids(text), c["ids"].get<std::vector<int32_t>>());
  }
}

TEST_F(DemoTokenizerTest, EveryWordIsOneToken) {
  std::vector<int32_t> seen;
  for (const std::string_view word : other_words()) seen.push_back(answer_id(word));
  for (const std::string_view word : question_openers()) {
    const std::vector<int32_t> turn = ids("<image>\n" + std::string(word), false);
    EXPECT_EQ(turn.size(), 3u) << word;
    seen.push_back(turn.back());
  }
  std::ranges::sort(seen);
  EXPECT_EQ(std::ranges::adjacent_find(seen), seen.end());
  EXPECT_LT(seen.back(), made_.image);
  EXPECT_LT(made_.size, 640);
}

// "USER:" with its space, the image, the newline, "ASSISTANT:", the answer and the end.
TEST_F(DemoTokenizerTest, ATurnAddsSixTokensToItsQuestion) {
  EXPECT_EQ(ids(open_turn("what shape?") + close_turn("star"), false).size(), 6u + 3);
  EXPECT_EQ(ids(open_turn("name the colour") + close_turn("dax"), false).size(), 6u + 3);
  EXPECT_EQ(ids(open_turn("how many objects?") + close_turn("two"), false).size(), 6u + 4);
  EXPECT_EQ(ids(open_turn("what shape is dax?") + close_turn("ring"), false).size(), 6u + 5);
  EXPECT_EQ(ids(open_turn("what colour is the dax?") + close_turn("red"), false).size(), 6u + 6);
  EXPECT_EQ(ids(open_turn("where is the star?") + close_turn("top-left"), false).size(), 6u + 5);
}

// What a model generates behind a prompt is what the same answer is inside the prompt of the next turn.
TEST_F(DemoTokenizerTest, AnswersAreTheSameTokensInPromptsAndBehindThem) {
  for (const Cell& cell : all_cells()) {
    const Item item = make_item(cell, Split::kTrain, 1, 7, {});
    std::string text;
    std::vector<int32_t> expected = {DemoTokenizer::kBegin};
    for (const Turn& turn : item.turns) {
      const std::vector<int32_t> question = ids(open_turn(turn.question), false);
      expected.insert(expected.end(), question.begin(), question.end());
      expected.push_back(answer_id(turn.answer));
      expected.push_back(DemoTokenizer::kEnd);
      text += open_turn(turn.question) + close_turn(turn.answer);
    }
    EXPECT_EQ(ids(text), expected) << cell.name;
  }
}

TEST_F(DemoTokenizerTest, AnAnswerDecodesToItsWord) {
  for (const std::string_view word : other_words()) {
    const std::vector<int32_t> generated = {answer_id(word), DemoTokenizer::kEnd};
    EXPECT_EQ(tokenizer().decode(generated, true), word);
  }
}

TEST_F(DemoTokenizerTest, NamesItsOwnIds) {
  EXPECT_EQ(tokenizer().id_of("<image>"), made_.image);
  EXPECT_EQ(tokenizer().id_of("<pad>"), made_.padding);
  EXPECT_EQ(tokenizer().id_of("</s>"), DemoTokenizer::kEnd);
  EXPECT_EQ(tokenizer().id_of("<s>"), DemoTokenizer::kBegin);
  EXPECT_EQ(tokenizer().id_of("<unk>"), DemoTokenizer::kUnknown);
  EXPECT_EQ(tokenizer().size(), made_.size);
}

class CrowdedTokenizerTest : public DemoTokenizerTest {
 protected:
  CrowdedTokenizerTest() : DemoTokenizerTest(Words::kCrowded) {}
};

TEST_F(CrowdedTokenizerTest, EveryWordIsOneToken) {
  std::set<int32_t> seen;
  for (const std::string_view word : other_words(Words::kCrowded)) seen.insert(answer_id(word));
  EXPECT_EQ(seen.size(), other_words(Words::kCrowded).size());
  EXPECT_EQ(other_words(Words::kCrowded).size(), other_words().size() + 10);
}

// Every question's words are a token each, and its mark; so are the answers, in prompts and behind them.
TEST_F(CrowdedTokenizerTest, QuestionsAndAnswersAreTheirWords) {
  for (const Cell& cell : crowded_cells())
    for (uint64_t i = 0; i < 12; ++i) {
      const Item item = make_item(cell, Split::kTrain, 1, i, {});
      for (const Turn& turn : item.turns) {
        const auto spaces = static_cast<size_t>(std::ranges::count(turn.question, ' '));
        const std::vector<int32_t> all = ids(open_turn(turn.question) + close_turn(turn.answer), false);
        EXPECT_EQ(all.size(), 6u + spaces + 2) << turn.question;
        EXPECT_EQ(all[all.size() - 2], answer_id(turn.answer));
      }
      for (const std::string& choice : item.choices)
        EXPECT_EQ(tokenizer().decode(std::vector{answer_id(choice)}), choice);
    }
}

// What a benchmark's client sees of a random model: whatever id is sampled, a text comes with it.
TEST_F(DemoTokenizerTest, FurtherIdsDecodeAndDoNotEncode) {
  const DemoTokenizer larger = demo_tokenizer(2000);
  EXPECT_EQ(larger.size, 2000);
  TemporaryFolder folder;
  for (const FolderFile& file : larger.files) folder.write(file.name, file.text);
  const Tokenizer filled = Tokenizer::load(folder.path());
  EXPECT_EQ(filled.size(), 2000);
  const int32_t word = answer_id("red");
  for (int32_t id = made_.image; id < larger.image; ++id)
    ASSERT_EQ(filled.decode(std::vector<int32_t>{word, id}, true), "red " + std::to_string(id));
  for (const char* text : {"USER: 1234 and 999 are red", "what is shown here, number 1700?"})
    EXPECT_EQ(filled.encode(text), ids(text)) << text;
}

TEST_F(DemoTokenizerTest, OtherTextSurvives) {
  const std::string text = "Zebra, 42 \u00e9! \xF0\x9F\x98\x80";
  EXPECT_EQ(tokenizer().decode(ids(text, false)), text);
}

// The text that training uses and what the checkpoint's template makes of a chat are one.
TEST_F(DemoTokenizerTest, TurnsAreWhatTheTemplateMakes) {
  const ChatTemplate chat_template = ChatTemplate::load(folder_.path());
  const std::vector<Message> messages = {{"user", {ImagePart{}, TextPart{"name the spot"}}},
                                         {"assistant", {TextPart{"wug"}}},
                                         {"user", {ImagePart{}, TextPart{"name the spot"}}}};
  EXPECT_EQ(chat_template.render(messages).text,
            open_turn("name the spot") + close_turn("wug") + open_turn("name the spot"));
}

}  // namespace
}  // namespace espalier::synth
