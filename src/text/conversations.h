// SPDX-License-Identifier: Apache-2.0
// Files with many conversations about pictures: LLaVA's instruction format, and folders of messages.json. A picture is
// decoded when its conversation is read, not before, so that a file may name more pictures than memory holds.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

#include "espalier/prompt.h"

namespace espalier {

// A list (.json), or one object a line (.jsonl), of {"conversations": [{"from": "human" | "gpt" | "system", "value"},
// …], "image": a path or a list of paths}; `<image>` in a value is where the next picture goes. Paths are relative to
// `image_folder`. A folder instead of a file: every messages.json (prompt.h) below it, in order of their paths.
class Conversations {
 public:
  // Reads and checks everything but the pictures. Throws Error naming file, entry and field.
  Conversations(const std::filesystem::path& data, const std::filesystem::path& image_folder);
  ~Conversations();
  Conversations(Conversations&&) noexcept;
  Conversations& operator=(Conversations&&) noexcept;

  size_t size() const;
  // Whether conversation i can have a picture: of a messages.json that is not known before it is read.
  bool may_have_images(size_t i) const;
  Chat read(size_t i) const;  // with its pictures

 private:
  struct Entries;
  std::unique_ptr<Entries> entries_;
};

// The turns up to the last one of the user: what a model is asked.
Chat without_last_answer(Chat chat);

}  // namespace espalier
