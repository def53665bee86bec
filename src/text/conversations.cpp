// SPDX-License-Identifier: Apache-2.0
#include "text/conversations.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"

namespace espalier {

namespace {

using nlohmann::json;

constexpr std::string_view kPlaceholder = "<image>";

struct Turn {
  std::string role, text;
};

struct Conversation {
  std::string where;  // file and entry, for messages
  std::vector<Turn> turns;
  std::vector<std::string> images;
};

size_t count_placeholders(std::string_view text) {
  size_t count = 0;
  for (size_t at = text.find(kPlaceholder); at != std::string_view::npos; at = text.find(kPlaceholder, at + 1)) ++count;
  return count;
}

std::vector<std::string> read_images(const JsonFields& fields) {
  const json* image = fields.find("image");
  if (!image) return {};
  if (image->is_string()) return {image->get<std::string>()};
  if (!image->is_array() || !std::ranges::all_of(*image, [](const json& i) { return i.is_string(); }))
    fields.fail("image", "a path or a list of paths");
  return image->get<std::vector<std::string>>();
}

Conversation read_entry(const json& entry, const std::string& where) {
  Conversation conversation{where, {}, {}};
  const JsonFields fields(entry, conversation.where);
  const json* turns = fields.find("conversations");
  if (!turns || !turns->is_array() || turns->empty()) fields.fail("conversations", "a list of turns");
  conversation.images = read_images(fields);
  size_t placeholders = 0;
  for (size_t i = 0; i < turns->size(); ++i) {
    const JsonFields turn((*turns)[i], conversation.where, "conversations." + std::to_string(i) + ".");
    const std::string from = turn.string("from").value_or("");
    const auto value = turn.string("value");
    if (from != "human" && from != "gpt" && from != "system") turn.fail("from", "\"human\", \"gpt\" or \"system\"");
    if (!value) turn.fail("value", "a string");
    placeholders += count_placeholders(*value);
    conversation.turns.push_back({from == "human" ? "user" : from == "gpt" ? "assistant" : "system", *value});
  }
  if (placeholders != conversation.images.size())
    throw Error(where + ": field \"image\": " + std::to_string(conversation.images.size()) + " pictures for " +
                std::to_string(placeholders) + " <image> in the text");
  if (std::ranges::none_of(conversation.turns, [](const Turn& turn) { return turn.role == "user"; }))
    throw Error(where + ": field \"conversations\": nobody asks anything");
  return conversation;
}

// A newline beside a placeholder belongs to it: templates put their own.
std::string_view without_newlines(std::string_view text, bool at_begin, bool at_end) {
  if (at_begin && text.starts_with('\n')) text.remove_prefix(1);
  if (at_end && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

Message message_of(const Turn& turn, std::vector<std::shared_ptr<const Image>>::const_iterator& next_image) {
  Message message{turn.role, {}};
  std::string_view rest = turn.text;
  bool behind_image = false;
  for (;;) {
    const size_t at = rest.find(kPlaceholder);
    const bool before_image = at != std::string_view::npos;
    const std::string_view text = without_newlines(rest.substr(0, at), behind_image, before_image);
    if (!text.empty()) message.content.emplace_back(TextPart{std::string(text)});
    if (!before_image) return message;
    message.content.emplace_back(ImagePart{*next_image++, false, {}});
    rest.remove_prefix(at + kPlaceholder.size());
    behind_image = true;
  }
}

}  // namespace

struct Conversations::Entries {
  std::filesystem::path image_folder;
  std::vector<Conversation> conversations;      // of a file, or
  std::vector<std::filesystem::path> messages;  // of a folder
};

Conversations::Conversations(const std::filesystem::path& data, const std::filesystem::path& image_folder)
    : entries_(std::make_unique<Entries>()) {
  const std::string file = data.string();
  entries_->image_folder = image_folder;
  if (is_folder(data)) {
    std::error_code failure;
    for (auto entry = std::filesystem::recursive_directory_iterator(data, failure);
         !failure && entry != std::filesystem::recursive_directory_iterator(); entry.increment(failure))
      if (entry->path().filename() == "messages.json") entries_->messages.push_back(entry->path());
    if (failure) throw Error(file + ": cannot read this folder: " + failure.message());
    std::ranges::sort(entries_->messages);
  } else if (data.extension() == ".jsonl") {
    const std::string text = read_text_file(data, limits::kDataFileBytes);
    size_t number = 0;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find('\n', begin), text.size());
      const std::string where = file + " line " + std::to_string(++number);
      const std::string_view line = std::string_view(text).substr(begin, end - begin);
      if (line.find_first_not_of(" \t\r") != std::string_view::npos)
        entries_->conversations.push_back(read_entry(parse_json(line, where), where));
      begin = end + 1;
    }
  } else {
    const json list = read_json_file(data, limits::kDataFileBytes);
    if (!list.is_array()) throw Error(file + ": expected a list of conversations");
    for (size_t i = 0; i < list.size(); ++i)
      entries_->conversations.push_back(read_entry(list[i], file + " entry " + std::to_string(i)));
  }
  if (size() == 0) throw Error(file + ": there is no conversation in it");
}

Conversations::~Conversations() = default;
Conversations::Conversations(Conversations&&) noexcept = default;
Conversations& Conversations::operator=(Conversations&&) noexcept = default;

size_t Conversations::size() const {
  return entries_->conversations.size() + entries_->messages.size();
}

bool Conversations::may_have_images(size_t i) const {
  return !entries_->messages.empty() || !entries_->conversations.at(i).images.empty();
}

Chat Conversations::read(size_t i) const {
  if (!entries_->messages.empty()) return read_chat(entries_->messages.at(i));
  const Conversation& conversation = entries_->conversations.at(i);
  std::vector<std::shared_ptr<const Image>> images;
  for (const std::string& path : conversation.images) try {
      images.push_back(std::make_shared<const Image>(read_image(entries_->image_folder / path)));
    } catch (const Error& error) {
      throw Error(conversation.where + ": " + error.what());
    }
  Chat chat;
  auto next_image = images.cbegin();
  for (const Turn& turn : conversation.turns) chat.messages.push_back(message_of(turn, next_image));
  return chat;
}

Chat without_last_answer(Chat chat) {
  while (!chat.messages.empty() && chat.messages.back().role != "user") chat.messages.pop_back();
  return chat;
}

}  // namespace espalier
