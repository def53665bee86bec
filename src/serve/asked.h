// SPDX-License-Identifier: Apache-2.0
// What a request's body asks for, read and checked in full before anything runs.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "espalier/engine.h"
#include "espalier/generation.h"
#include "serve/options.h"
#include "serve/pictures.h"
#include "serve/policies.h"

namespace espalier::serve {

struct Asked {
  bool is_chat = true;
  Request request;
  int samples = 1;
  bool streams = false;
  bool tells_usage = false;  // of a stream, in a chunk of its own
  bool tells_stats = false;  // the `espalier` object
  bool tells_logprobs = false;
  std::string policy_name;        // in metrics
  std::string policy;             // its spec, as it was asked for
  std::string prefix;             // X-Espalier-Prefix
  std::shared_ptr<void> counted;  // pictures and body, as long as it lives
};

// What bodies are read with. Thread-safe.
struct AskedOf {
  const ServeOptions& options;
  PictureReader::Shared& pictures;
  Policies& policies;
};

// Of /v1/chat/completions and /v1/completions. Throw ApiError.
Asked read_chat_request(const std::string& body, const AskedOf& of);
Asked read_completion_request(const std::string& body, const AskedOf& of);

// Of /tokenize: a text, or turns whose tokens are only counted.
struct TokenizeAsked {
  std::optional<std::string> text;
  bool add_special = true;
  Prompt prompt;
  std::shared_ptr<void> counted;
};
TokenizeAsked read_tokenize_request(const std::string& body, const AskedOf& of);

}  // namespace espalier::serve
