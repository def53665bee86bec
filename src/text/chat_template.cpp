// SPDX-License-Identifier: Apache-2.0
#include "text/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>
#include <variant>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/error.h"
#include "jinja/interpreter.h"

namespace espalier {

struct ChatTemplateProgram {
  std::vector<jinja::Statement> statements;
};

struct ChatTemplate::Rendered {
  std::string text;
  std::vector<std::vector<std::pair<size_t, size_t>>>
      turns;  // for each message, the parts of `text` that loops wrote for it

  // The part of the output that is the turn: a loop over the messages wrote it, and no other loop wrote for it too.
  std::optional<std::pair<size_t, size_t>> span_of(size_t turn) const {
    std::optional<std::pair<size_t, size_t>> found;
    for (const auto& span : turns[turn]) {
      if (span.first == span.second) continue;
      if (found) return std::nullopt;
      found = span;
    }
    return found;
  }
  std::string text_of(size_t turn) const {
    const auto span = span_of(turn);
    return span ? text.substr(span->first, span->second - span->first) : std::string();
  }
};

namespace {

using nlohmann::json;

// For templates that take text alone.
std::string content_text(const Message& message, const std::string& placeholder) {
  std::string out;
  for (const Part& part : message.content) {
    const auto* text = std::get_if<TextPart>(&part);
    out += text ? text->text : placeholder + "\n";
  }
  return out;
}

// As Transformers hands messages to a template: a list of {"type": "image"} and {"type": "text", "text": …}.
jinja::List content_list(const Message& message) {
  jinja::List content;
  for (const Part& part : message.content) {
    jinja::Dict item;
    if (const auto* text = std::get_if<TextPart>(&part)) {
      item.items = {{"type", "text"}, {"text", text->text}};
    } else {
      item.items = {{"type", "image"}};
    }
    content.emplace_back(std::move(item));
  }
  return content;
}

// A template, or a list of named ones, of which "default" is the one for chat.
std::optional<std::string> template_of(const json& file, const std::string& name) {
  const JsonFields fields(file, name);
  const json* value = fields.find("chat_template");
  if (!value) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) fields.fail("chat_template", "a string or a list of named templates");
  for (const json& entry : *value) {
    const JsonFields named(entry, name, "chat_template.");
    if (named.string("name") != "default") continue;
    const auto text = named.string("template");
    if (!text) named.fail("template", "a string");
    return text;
  }
  fields.fail("chat_template", "one named \"default\"");
}

// "bos_token": "<s>" or {"content": "<s>", …}, and the others of this form.
void read_special_tokens(const json& file, std::vector<std::pair<std::string, std::string>>& tokens) {
  for (const auto& [key, value] : file.items()) {
    const json* content = value.is_object() && value.contains("content") ? &value["content"] : &value;
    if (!key.ends_with("_token") || !content->is_string()) continue;
    const bool known = std::ranges::find(tokens, key, &std::pair<std::string, std::string>::first) != tokens.end();
    if (!known) tokens.emplace_back(key, content->get<std::string>());
  }
}

}  // namespace

ChatTemplate::ChatTemplate(const std::string& source, std::string name)
    : name_(std::move(name)),
      program_(std::make_shared<ChatTemplateProgram>(ChatTemplateProgram{jinja::parse(source, name_)})) {
  find_form_of_content();
}

// A template that fails at a list and shows a string was made for text.
void ChatTemplate::find_form_of_content() {
  const std::string probe = "What is this?";
  const Message question{"user", {TextPart{probe}}};
  const auto rendered = [&](bool as_text) -> std::optional<std::string> {
    takes_text_only_ = as_text;
    try {
      return render_turns(std::span(&question, 1), true).text;
    } catch (const Error&) {  // it may also take neither, or not a question alone
      return std::nullopt;
    }
  };
  takes_text_only_ = !rendered(false) && rendered(true).value_or("").find(probe) != std::string::npos;
}

std::optional<ChatTemplate> ChatTemplate::find(const std::filesystem::path& folder) {
  const std::filesystem::path jinja = folder / "chat_template.jinja", legacy = folder / "chat_template.json";
  const std::filesystem::path config = folder / "tokenizer_config.json";
  std::optional<std::string> source;
  std::filesystem::path from;
  if (is_there(from = legacy)) {  // Transformers takes this one where both are there
    source = template_of(read_json_file(legacy), legacy.string());
    if (!source) throw Error(legacy.string() + ": field \"chat_template\": expected a string, got nothing");
  } else if (is_there(from = jinja)) {
    source = read_text_file(jinja);
  } else if (is_there(from = config)) {
    source = template_of(read_json_file(config), config.string());
  }
  if (!source) return std::nullopt;
  ChatTemplate out(*source, from.string());
  out.read_special_tokens_of(folder);
  return out;
}

ChatTemplate ChatTemplate::read(const std::filesystem::path& file, const std::filesystem::path& folder) {
  std::optional<std::string> source;
  if (file.extension() == ".json") {
    source = template_of(read_json_file(file), file.string());
    if (!source) throw Error(file.string() + ": field \"chat_template\": expected a string, got nothing");
  } else {
    source = read_text_file(file, limits::kTemplateBytes);
  }
  ChatTemplate out(*source, file.string());
  out.read_special_tokens_of(folder);
  return out;
}

void ChatTemplate::read_special_tokens_of(const std::filesystem::path& folder) {
  for (const char* file : {"tokenizer_config.json", "special_tokens_map.json"})
    if (is_there(folder / file)) read_special_tokens(read_json_file(folder / file), special_tokens_);
  if (!special_tokens_.empty()) find_form_of_content();  // which may depend on them
}

ChatTemplate ChatTemplate::load(const std::filesystem::path& folder) {
  std::optional<ChatTemplate> found = find(folder);
  if (!found) {
    throw Error(folder.string() +
                ": no chat template: neither chat_template.json nor chat_template.jinja nor \"chat_template\" in "
                "tokenizer_config.json");
  }
  return *std::move(found);
}

ChatTemplate::Rendered ChatTemplate::render_turns(std::span<const Message> turns, bool add_generation_prompt) const {
  jinja::List messages;
  std::unordered_map<const jinja::Dict*, size_t> turn_of;
  for (const Message& turn : turns) {
    jinja::Dict message;
    message.items = {{"role", turn.role},
                     {"content", takes_text_only_ ? jinja::Value(content_text(turn, placeholder_))
                                                  : jinja::Value(content_list(turn))}};
    messages.emplace_back(std::move(message));
    turn_of.emplace(messages.back().dict(), turn_of.size());
  }
  jinja::Dict variables;
  for (const auto& [key, token] : special_tokens_) variables.set(key, token);
  variables.set("messages", messages);
  variables.set("add_generation_prompt", add_generation_prompt);
  variables.set("tools", jinja::None{});
  variables.set("documents", jinja::None{});
  Rendered out;
  out.turns.resize(turns.size());
  out.text =
      jinja::run(program_->statements, name_, variables, [&](const jinja::Value& item, size_t begin, size_t end) {
        const auto turn = turn_of.find(item.dict());
        if (turn != turn_of.end()) out.turns[turn->second].emplace_back(begin, end);
      });
  return out;
}

// How much of `first_turn`, the output for turns.back(), stands there only because no user turn comes before: a default
// system prompt, a <s>. Found by saying the same again behind it: the same turn at a later place has no preamble.
size_t ChatTemplate::preamble_of(std::span<const Message> turns, const std::string& first_turn) const {
  const Message answer{"assistant", {TextPart{"."}}};
  for (const bool alternate : {false, true}) {  // many templates refuse two user turns in a row
    std::vector<Message> repeated(turns.begin(), turns.end());
    for (int i = 0; i < 2; ++i) {  // twice, so that neither of the two compared is the last
      if (alternate) repeated.push_back(answer);
      repeated.push_back(turns.back());
    }
    try {
      const Rendered rendered = render_turns(repeated, false);
      const std::string first = rendered.text_of(turns.size() - 1);
      const std::string later = rendered.text_of(turns.size() + (alternate ? 1 : 0));
      if (later.empty() || !first.ends_with(later)) return 0;
      const size_t preamble = first.size() - later.size();
      return first_turn.starts_with(std::string_view(first).substr(0, preamble)) ? preamble : 0;
    } catch (const Error&) {  // this order of turns is not for this template
    }
  }
  return 0;
}

// For templates without a loop over the messages: the turns in front, rendered alone, are what stands before the turn.
size_t ChatTemplate::begin_by_prefix(std::span<const Message> turns, const std::string& text) const {
  const Rendered prefix = render_turns(turns, false);
  if (text.starts_with(prefix.text)) return prefix.text.size();
  throw Error(name_ + ": cannot tell where message " + std::to_string(turns.size()) + " begins in the rendered text");
}

std::string ChatTemplate::render_text(std::span<const Message> messages, bool add_generation_prompt) const {
  return render_turns(messages, add_generation_prompt).text;
}

RenderedChat ChatTemplate::render(std::span<const Message> messages, bool add_generation_prompt) const {
  const Rendered rendered = render_turns(messages, add_generation_prompt);
  RenderedChat out{rendered.text, {}};
  for (size_t i = 0; i < messages.size(); ++i) {
    if (messages[i].role != "user") continue;
    const auto span = rendered.span_of(i);
    size_t begin = span ? span->first : begin_by_prefix(messages.first(i), out.text);
    if (span && out.example_begins.empty()) begin += preamble_of(messages.first(i + 1), rendered.text_of(i));
    out.example_begins.push_back(begin);
  }
  return out;
}

}  // namespace espalier
