// SPDX-License-Identifier: Apache-2.0
// Conversations in LLaVA's instruction format and as folders of messages.json.
#include "text/conversations.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "pictures/image_encode.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

const TemporaryFolder& folder() {
  static const TemporaryFolder made;
  static const bool filled = [] {
    for (const auto& [name, width] : {std::pair("pictures/a.png", 3), std::pair("pictures/b.png", 5)}) {
      const auto png = encode_png({width, 2, std::vector<uint8_t>(static_cast<size_t>(width * 2 * 3))});
      made.write(name, {reinterpret_cast<const char*>(png.data()), png.size()});
    }
    return true;
  }();
  EXPECT_TRUE(filled);
  return made;
}

constexpr const char* kTwo = R"([
  {"id": "0", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat is it?"},
                                                  {"from": "gpt", "value": "A cat."}]},
  {"image": ["a.png", "b.png"], "conversations": [{"from": "system", "value": "Be brief."},
      {"from": "human", "value": "Compare\n<image>\nwith <image>"}, {"from": "gpt", "value": "Equal."},
      {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]}])";

std::string outline(const Chat& chat) {
  std::string text;
  for (const Message& message : chat.messages) {
    text += message.role + ":";
    for (const Part& part : message.content)
      if (const auto* words = std::get_if<TextPart>(&part))
        text += "[" + words->text + "]";
      else
        text += "(" + std::to_string(std::get<ImagePart>(part).image->width) + ")";
    text += " ";
  }
  return text;
}

TEST(ConversationsTest, InstructionFormat) {
  const Conversations data(folder().write("two.json", kTwo), folder() / "pictures");
  ASSERT_EQ(data.size(), 2U);
  EXPECT_EQ(outline(data.read(0)), "user:(3)[What is it?] assistant:[A cat.] ");
  EXPECT_EQ(outline(data.read(1)),
            "system:[Be brief.] user:[Compare](3)[with ](5) assistant:[Equal.] user:[Sure?] assistant:[Yes.] ");
  EXPECT_EQ(outline(without_last_answer(data.read(0))), "user:(3)[What is it?] ");
}

TEST(ConversationsTest, OneALine) {
  const Conversations data(folder().write("lines.jsonl",
                                          "{\"conversations\": [{\"from\": \"human\", \"value\": \"one\"}]}\n\n"
                                          "{\"conversations\": [{\"from\": \"human\", \"value\": \"two\"}]}"),
                           folder().path());
  ASSERT_EQ(data.size(), 2U);
  EXPECT_EQ(outline(data.read(1)), "user:[two] ");
}

TEST(ConversationsTest, AFolderOfMessages) {
  const TemporaryFolder other;
  other.write("2/messages.json", R"([{"role": "user", "content": "second"}])");
  other.write("1/messages.json", R"([{"role": "user", "content": "first"}])");
  const Conversations data(other.path(), {});
  ASSERT_EQ(data.size(), 2U);
  EXPECT_EQ(outline(data.read(0)), "user:[first] ");
}

TEST(ConversationsTest, WhatIsWrongIsNamed) {
  const auto read = [](const std::string& json) {
    Conversations(folder().write("bad.json", json), folder() / "pictures");
  };
  EXPECT_ERROR(read("{}"), "bad.json: expected a list of conversations");
  EXPECT_ERROR(read("[]"), "there is no conversation in it");
  EXPECT_ERROR(read("[{}]"), "bad.json entry 0: field \"conversations\"");
  EXPECT_ERROR(read(R"([{"conversations": [{"from": "me", "value": "x"}]}])"), "field \"conversations.0.from\"");
  EXPECT_ERROR(read(R"([{"conversations": [{"from": "human", "value": 3}]}])"), "field \"conversations.0.value\"");
  EXPECT_ERROR(read(R"([{"conversations": [{"from": "gpt", "value": "x"}]}])"), "nobody asks anything");
  EXPECT_ERROR(read(R"([{"image": "a.png", "conversations": [{"from": "human", "value": "x"}]}])"),
               "1 pictures for 0 <image>");
  EXPECT_ERROR(read(R"([{"image": 4, "conversations": [{"from": "human", "value": "x"}]}])"), "field \"image\"");
  const Conversations data(
      folder().write("gone.json", R"([{"image": "c.png", "conversations": [{"from": "human", "value": "<image>"}]}])"),
      folder() / "pictures");
  EXPECT_ERROR(data.read(0), "gone.json entry 0: ");
}

}  // namespace
}  // namespace espalier
