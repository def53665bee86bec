// SPDX-License-Identifier: Apache-2.0
#include "espalier/prompt.h"

#include "tests/support/folders.h"
#include "tests/support/temporary_folder.h"

namespace espalier {
namespace {

namespace fs = std::filesystem;

const fs::path kImages = test::golden_folder() / "images";

std::string text_of(const Part& part) {
  return std::get<TextPart>(part).text;
}
const ImagePart& image_of(const Part& part) {
  return std::get<ImagePart>(part);
}

class ReadChatTest : public ::testing::Test {
 protected:
  ReadChatTest() {
    fs::create_directory(folder_ / "pictures");
    fs::copy_file(kImages / "rgb.png", folder_ / "pictures/a.png");  // 34 x 21
  }
  Chat read(const std::string& text) { return read_chat(folder_.write("messages.json", text)); }
  Chat read_pin(const std::string& pin) {
    return read(R"([{"role": "user", "content": [{"type": "image", "path": "pictures/a.png", "pin": )" + pin + "}]}]");
  }
  TemporaryFolder folder_;
};

TEST(InContextChat, AlternatesTurnsAndEndsWithTheQuery) {
  const auto image = [](int width) { return ImagePart{std::make_shared<Image>(Image{width, 1, {}}), false, {}}; };
  const std::vector<Example> examples = {{image(1), "Q1", "A1"}, {image(2), "Q2", "A2"}};
  const Chat chat = in_context_chat(examples, image(3), "Q3");
  ASSERT_EQ(chat.messages.size(), 5u);
  for (int i = 0; i < 3; ++i) {
    const Message& user = chat.messages[2 * i];
    EXPECT_EQ(user.role, "user");
    ASSERT_EQ(user.content.size(), 2u);
    EXPECT_EQ(image_of(user.content[0]).image->width, i + 1);
    EXPECT_EQ(text_of(user.content[1]), (std::string{'Q', static_cast<char>('1' + i)}));
  }
  for (int i = 0; i < 2; ++i) {
    const Message& assistant = chat.messages[2 * i + 1];
    EXPECT_EQ(assistant.role, "assistant");
    ASSERT_EQ(assistant.content.size(), 1u);
    EXPECT_EQ(text_of(assistant.content[0]), (std::string{'A', static_cast<char>('1' + i)}));
  }
  EXPECT_EQ(in_context_chat({}, image(1), "Q").messages.size(), 1u);
}

TEST_F(ReadChatTest, ReadsTurnsInOrder) {
  const Chat chat = read(R"([
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "path": "pictures/a.png"},
                                 {"type": "image", "path": "pictures/a.png", "pin": true}, {"type": "text", "text": "é?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}])");
  ASSERT_EQ(chat.messages.size(), 3u);
  EXPECT_EQ(chat.messages[0].role, "system");
  EXPECT_EQ(text_of(chat.messages[0].content.at(0)), "Be brief.");
  const std::vector<Part>& parts = chat.messages[1].content;
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(text_of(parts[0]), "Look: ");
  EXPECT_EQ(image_of(parts[1]).image->width, 34);
  EXPECT_EQ(image_of(parts[1]).image->rgb, read_image(kImages / "rgb.png").rgb);
  EXPECT_FALSE(image_of(parts[1]).pin_all);
  EXPECT_TRUE(image_of(parts[2]).pin_all);
  EXPECT_EQ(image_of(parts[1]).image, image_of(parts[2]).image) << "decoded twice";
  EXPECT_EQ(text_of(parts[3]), "é?");
  EXPECT_EQ(chat.messages[2].role, "assistant");
}

TEST_F(ReadChatTest, TakesAbsolutePaths) {
  const std::string path = (kImages / "420.jpg").string();
  const Chat chat = read(R"([{"role": "user", "content": [{"type": "image", "path": ")" + path + "\"}]}]");
  EXPECT_EQ(image_of(chat.messages[0].content[0]).image->height, 21);
}

TEST_F(ReadChatTest, ReadsPins) {
  const auto pins = [&](const std::string& pin) {
    std::vector<std::vector<int>> out;
    const Chat chat = read_pin(pin);
    for (const Region& r : image_of(chat.messages[0].content[0]).pins) out.push_back({r.x0, r.y0, r.x1, r.y1});
    return out;
  };
  using Regions = std::vector<std::vector<int>>;
  EXPECT_EQ(pins("[0, 0, 34, 21]"), (Regions{{0, 0, 34, 21}}));
  EXPECT_EQ(pins("[[1, 2, 3, 4], [5, 6, 7, 8]]"), (Regions{{1, 2, 3, 4}, {5, 6, 7, 8}}));
  EXPECT_EQ(pins("false"), Regions{});
  EXPECT_EQ(pins("null"), Regions{});
}

TEST_F(ReadChatTest, RefusesBadPins) {
  for (const char* pin : {"[1, 2, 3]", "[1, 2, 3, 4.5]", "[-1, 2, 3, 4]", "[1, 2, 99999999999, 4]", "[1, [2], 3, 4]"}) {
    EXPECT_ERROR(read_pin(pin), "field \"[0].content[0].pin\": expected [x0, y0, x1, y1] in pixels");
  }
  for (const char* pin : {"[3, 2, 3, 4]", "[1, 5, 3, 4]", "[1, 2, 35, 4]", "[1, 2, 3, 22]"}) {
    EXPECT_ERROR(read_pin(pin), "field \"[0].content[0].pin\": is not a region of a picture of 34x21 pixels");
  }
  EXPECT_ERROR(read_pin("[[1, 2, 3, 4], [1, 2]]"), "field \"[0].content[0].pin[1]\": expected [x0, y0, x1, y1]");
  EXPECT_ERROR(read_pin("[]"), "field \"[0].content[0].pin\": expected true");
  EXPECT_ERROR(read_pin("\"all\""), "field \"[0].content[0].pin\": expected true");
}

TEST_F(ReadChatTest, NamesThePlaceOfWhatIsWrong) {
  EXPECT_ERROR(read_chat(folder_ / "absent.json"), "absent.json: no such file");
  const std::pair<const char*, const char*> cases[] = {
      {R"([{)", "messages.json: parse error at line 1"},
      {R"({})", "messages.json: expected a list of messages"},
      {R"([])", "messages.json: expected a list of messages"},
      {R"(["hello"])", "field \"[0]\": expected an object, got \"hello\""},
      {R"([{"content": "x"}])", "field \"[0].role\": expected \"system\", \"user\" or \"assistant\", got nothing"},
      {R"([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}])", "field \"[1].role\""},
      {R"([{"role": "user"}])", "field \"[0].content\": expected a string or a list of parts, got nothing"},
      {R"([{"role": "user", "content": {}}])", "field \"[0].content\""},
      {R"([{"role": "user", "contents": "x", "content": "x"}])", "field \"[0].contents\": no such field is known"},
      {R"([{"role": "user", "content": ["x"]}])", "field \"[0].content[0]\": expected an object"},
      {R"([{"role": "user", "content": [{"type": "video"}]}])",
       "field \"[0].content[0].type\": expected \"text\" or \"image\""},
      {R"([{"role": "user", "content": [{"type": "text"}]}])", "field \"[0].content[0].text\": expected a string"},
      {R"([{"role": "user", "content": [{"type": "text", "text": 3}]}])",
       "field \"[0].content[0].text\": expected a string, got 3"},
      {R"([{"role": "user", "content": [{"type": "image"}]}])",
       "field \"[0].content[0].path\": expected the file of a picture"},
      {R"([{"role": "user", "content": [{"type": "image", "path": "pictures/a.png", "pins": true}]}])",
       "field \"[0].content[0].pins\": no such field is known"},
      {R"([{"role": "user", "content": [{"type": "image", "path": "b.png"}]}])", "b.png: no such file"},
      {R"([{"role": "user", "content": [{"type": "image", "path": "messages.json"}]}])",
       "messages.json: not a JPEG, PNG or WebP image"},
  };
  for (const auto& [text, message] : cases) EXPECT_ERROR(read(text), message);
}

}  // namespace
}  // namespace espalier
