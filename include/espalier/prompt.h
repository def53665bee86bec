// SPDX-License-Identifier: Apache-2.0
// What a user asks: text and images in order, as chat turns or as one exact text. In-context examples are a first-class
// thing: earlier user turns with their answers, or spans marked in a raw prompt. CATP reads them from the layout.
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "espalier/image.h"

namespace espalier {

struct Region {  // pixels of the original picture; x1, y1 exclusive
  int x0, y0, x1, y1;
};

class ImageHandle;  // a picture that an Engine has looked at already (Engine::look_at)

// One picture of a prompt. Tokens that touch a pinned region are never dropped by the built-in policies; a policy of
// the caller's own reads them from TokenLayout::pinned.
struct ImagePart {
  std::shared_ptr<const Image> image = {};
  bool pin_all = false;
  std::vector<Region> pins = {};
  // In place of preparing `image` and running the vision tower again; `image` may then be empty. Of the same Engine.
  std::shared_ptr<const ImageHandle> handle = {};
};

struct TextPart {
  std::string text;
};

using Part = std::variant<TextPart, ImagePart>;

struct Message {
  std::string role;  // "system", "user" or "assistant"; anything else is an Error
  std::vector<Part> content = {};
};

// Turns, put through the checkpoint's own chat template with the generation prompt after them. Each user turn with the
// answer after it is one example, 0, 1, …; the last user turn is the query. The last message must be the user's, as
// what comes next is the model's answer.
struct Chat {
  std::vector<Message> messages = {};
};

// The exact text, with the family's image placeholder (`<image>` for LLaVA) where pictures go, in order. The whole text
// is one example, 0, unless `example_begins` says where examples begin: ascending byte offsets into `text`, the last of
// them that of the query. What stands before the first belongs to no example.
struct RawPrompt {
  std::string text;
  std::vector<ImagePart> images = {};
  std::vector<size_t> example_begins = {};
};

using Prompt = std::variant<Chat, RawPrompt>;

// An in-context example: one picture, a question, the answer.
struct Example {
  ImagePart image;
  std::string question;
  std::string answer;
};

// The usual in-context prompt: each example a user and an assistant turn, then the query as the last user turn.
Chat in_context_chat(std::span<const Example> examples, ImagePart query_image, std::string question);

// The Hugging Face chat form: a list of {"role", "content"}, content a string or a list of {"type": "text", "text"} and
// {"type": "image", "path"[, "pin": true | [x0, y0, x1, y1] | [[x0, y0, x1, y1], …]]}. Paths are relative to the file.
// Throws Error naming the file and the place of what is wrong.
Chat read_chat(const std::filesystem::path& messages_json);

}  // namespace espalier
