// SPDX-License-Identifier: Apache-2.0
// The chat template of a checkpoint: turns to the exact text that the model was trained on. Images stand in it as the
// family's placeholder; their token counts are not known here. A template that was made for text alone, as published
// decoders have them, gets each turn as one string, the placeholder and a newline where a picture stands.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "espalier/prompt.h"

namespace espalier {

struct RenderedChat {
  std::string text;
  std::vector<size_t> example_begins;  // byte offset in `text` where each user turn begins, its template words included
};

class ChatTemplate {
 public:
  // `name` (a file) opens the message of every Error. Throws Error naming a construct that is not supported.
  ChatTemplate(const std::string& source, std::string name);

  // From a file of its own, Jinja or JSON with "chat_template", with the special tokens of the checkpoint in `folder`.
  static ChatTemplate read(const std::filesystem::path& file, const std::filesystem::path& folder);

  // chat_template.json, chat_template.jinja, or "chat_template" in tokenizer_config.json, the first that is there.
  // Templates may ask for the special tokens that the folder names (bos_token and others).
  static ChatTemplate load(const std::filesystem::path& folder);                 // Error when there is none
  static std::optional<ChatTemplate> find(const std::filesystem::path& folder);  // nullopt when there is none

  // What stands for a picture where a template takes text alone; "<image>" at the start.
  void set_placeholder(std::string placeholder) { placeholder_ = std::move(placeholder); }
  const std::string& name() const { return name_; }
  bool takes_text_only() const { return takes_text_only_; }

  // Throws Error where the template raises one, and when it cannot be told where a user turn begins.
  RenderedChat render(std::span<const Message> messages, bool add_generation_prompt = true) const;
  std::string render_text(std::span<const Message> messages, bool add_generation_prompt = true) const;

 private:
  struct Rendered;
  void read_special_tokens_of(const std::filesystem::path& folder);
  void find_form_of_content();
  Rendered render_turns(std::span<const Message> turns, bool add_generation_prompt) const;
  size_t preamble_of(std::span<const Message> turns, const std::string& first_turn) const;
  size_t begin_by_prefix(std::span<const Message> turns, const std::string& text) const;

  std::string name_;
  std::string placeholder_ = "<image>";
  bool takes_text_only_ = false;
  std::vector<std::pair<std::string, std::string>> special_tokens_;  // variables of the template
  std::shared_ptr<const struct ChatTemplateProgram> program_;
};

}  // namespace espalier
