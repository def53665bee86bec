// SPDX-License-Identifier: Apache-2.0
#include "espalier/prompt.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "base/error_text.h"
#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"
#include "espalier/json.h"

namespace espalier {
namespace {

using nlohmann::json;

std::string indexed(const std::string& list, size_t i) {
  return list + '[' + std::to_string(i) + ']';
}

// Walks messages.json. A place in it is written as in JavaScript: [2].content[0].path.
class ChatReader {
 public:
  // `name` opens the message of every Error.
  ChatReader(std::string name, std::filesystem::path folder) : file_(std::move(name)), folder_(std::move(folder)) {}

  Chat read(const json& messages) {
    if (!messages.is_array() || messages.empty()) throw Error(file_ + ": expected a list of messages");
    Chat chat;
    for (size_t i = 0; i < messages.size(); ++i) {
      chat.messages.push_back(read_message(messages[i], indexed("", i) + '.'));
    }
    return chat;
  }

 private:
  [[noreturn]] void fail(const std::string& place, const std::string& why) const {
    throw Error(file_ + ": field \"" + place + "\": " + why);
  }

  // A misspelt "pin" must not pass for no pin.
  void check_keys(const json& object, const std::string& place, std::initializer_list<std::string_view> known) const {
    for (const auto& [key, value] : object.items()) {
      if (std::find(known.begin(), known.end(), key) == known.end()) fail(place + shown(key), "no such field is known");
    }
  }

  Message read_message(const json& value, const std::string& place) {
    const JsonFields fields(value, file_, place);
    check_keys(value, place, {"role", "content"});
    Message message{fields.string("role").value_or(""), {}};
    if (message.role != "system" && message.role != "user" && message.role != "assistant") {
      fields.fail("role", "\"system\", \"user\" or \"assistant\"");
    }
    const json* content = fields.find("content");
    if (!content || !(content->is_string() || content->is_array()))
      fields.fail("content", "a string or a list of parts");
    if (content->is_string()) {
      message.content.emplace_back(TextPart{content->get<std::string>()});
      return message;
    }
    for (size_t i = 0; i < content->size(); ++i) {
      message.content.push_back(read_part((*content)[i], indexed(place + "content", i) + '.'));
    }
    return message;
  }

  Part read_part(const json& value, const std::string& place) {
    const JsonFields fields(value, file_, place);
    const std::string type = fields.string("type").value_or("");
    if (type == "text") {
      check_keys(value, place, {"type", "text"});
      std::optional<std::string> text = fields.string("text");
      if (!text) fields.fail("text", "a string");
      return TextPart{*std::move(text)};
    }
    if (type != "image") fields.fail("type", "\"text\" or \"image\"");
    check_keys(value, place, {"type", "path", "pin"});
    const std::optional<std::string> path = fields.string("path");
    if (!path || path->empty()) fields.fail("path", "the file of a picture");
    ImagePart part{read_picture(*path, place + "path"), false, {}};
    if (const json* pin = fields.find("pin")) read_pin(*pin, place + "pin", part);
    return part;
  }

  // A picture that occurs several times is decoded once.
  std::shared_ptr<const Image> read_picture(const std::string& path, const std::string& place) {
    std::shared_ptr<const Image>& image = pictures_[path];
    if (image) return image;
    try {
      image = std::make_shared<const Image>(read_image(folder_ / path));
    } catch (const Error& error) {
      fail(place, error.what());
    }
    return image;
  }

  void read_pin(const json& pin, const std::string& place, ImagePart& part) const {
    if (pin.is_boolean()) {
      part.pin_all = pin.get<bool>();
      return;
    }
    if (!pin.is_array() || pin.empty()) fail(place, "expected true, [x0, y0, x1, y1] or a list of such");
    if (pin[0].is_number()) {
      part.pins.push_back(read_region(pin, place, *part.image));
      return;
    }
    for (size_t i = 0; i < pin.size(); ++i) {
      part.pins.push_back(read_region(pin[i], indexed(place, i), *part.image));
    }
  }

  Region read_region(const json& value, const std::string& place, const Image& image) const {
    const auto is_coordinate = [](const json& v) {
      return v.is_number_integer() && v >= 0 && v <= std::numeric_limits<int>::max();
    };
    if (!value.is_array() || value.size() != 4 || !std::all_of(value.begin(), value.end(), is_coordinate)) {
      fail(place, "expected [x0, y0, x1, y1] in pixels");
    }
    const Region r{value[0].get<int>(), value[1].get<int>(), value[2].get<int>(), value[3].get<int>()};
    if (r.x0 >= r.x1 || r.y0 >= r.y1 || r.x1 > image.width || r.y1 > image.height) {
      fail(place, "is not a region of a picture of " + std::to_string(image.width) + "x" +
                      std::to_string(image.height) + " pixels: 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height");
    }
    return r;
  }

  std::string file_;
  std::filesystem::path folder_;
  std::map<std::string, std::shared_ptr<const Image>> pictures_;
};

}  // namespace

Chat in_context_chat(std::span<const Example> examples, ImagePart query_image, std::string question) {
  Chat chat;
  for (const Example& example : examples) {
    chat.messages.push_back({"user", {example.image, TextPart{example.question}}});
    chat.messages.push_back({"assistant", {TextPart{example.answer}}});
  }
  chat.messages.push_back({"user", {std::move(query_image), TextPart{std::move(question)}}});
  return chat;
}

Chat read_chat(const std::filesystem::path& messages_json) {
  return ChatReader(messages_json.string(), messages_json.parent_path()).read(read_json_file(messages_json));
}

Chat parse_chat(std::string_view messages_json, const std::filesystem::path& folder, const std::string& name) {
  return ChatReader(name, folder).read(parse_json(messages_json, name));
}

}  // namespace espalier
