// SPDX-License-Identifier: Apache-2.0
// One case of tests/golden/CHECKPOINT/cases as a request.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json_file.h"
#include "espalier/generation.h"
#include "tests/support/tiny_llava.h"

namespace espalier::test {

struct GoldenCase {
  explicit GoldenCase(std::string case_name, std::string of_checkpoint = "llava15")
      : checkpoint(std::move(of_checkpoint)),
        name(std::move(case_name)),
        json(read_json_file(folder() / (name + ".json"))),
        tensors(folder() / (name + ".safetensors")) {}

  std::filesystem::path folder() const { return golden_folder() / checkpoint / "cases"; }

  std::vector<ImagePart> images() const {
    std::vector<ImagePart> parts;
    for (const auto& file : json.at("image_files"))
      parts.push_back(
          {.image = std::make_shared<const Image>(read_image(folder() / file.get<std::string>())), .pins = {}});
    return parts;
  }

  Prompt prompt() const {
    const std::vector<ImagePart> parts = images();
    if (!json.contains("messages") || json.at("messages").is_null()) return RawPrompt{json.at("prompt"), parts, {}};
    Chat chat;
    size_t next = 0;
    for (const auto& message : json.at("messages")) {
      Message m{message.at("role"), {}};
      for (const auto& part : message.at("content")) {
        if (part.at("type") == "image") {
          m.content.emplace_back(parts.at(next++));
        } else {
          m.content.emplace_back(TextPart{part.at("text")});
        }
      }
      chat.messages.push_back(std::move(m));
    }
    return chat;
  }

  // Sixteen greedy tokens, as the golden has.
  Request request() const {
    Request r{.prompt = prompt(), .policy = "none", .custom = {}, .options = {}, .trace = false};
    r.options.max_new_tokens = 16;
    r.options.greedy = true;
    r.options.ignore_eos = true;
    return r;
  }

  std::string checkpoint;
  std::string name;
  nlohmann::json json;
  std::filesystem::path tensors;
};

}  // namespace espalier::test
