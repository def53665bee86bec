// SPDX-License-Identifier: Apache-2.0
// What a client is told when its request cannot be served, in OpenAI's form: {"error": {"message", "type", "param",
// "code"}}. Thrown while a request is read, before anything of an answer goes out.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "serve/http.h"

namespace espalier::serve {

struct ApiError : std::exception {
  ApiError(int http_status, std::string error_code, std::string text, std::string field = {})
      : status(http_status), code(std::move(error_code)), message(std::move(text)), param(std::move(field)) {}
  const char* what() const noexcept override { return message.c_str(); }

  int status;
  std::string code;     // for programs: "unknown_field", "queue_full", …
  std::string message;  // for people
  std::string param;    // the field, "messages[1].content[0].image_url.url"; empty: none
};

HttpAnswer answer_of(const ApiError& error);  // 429 and 503 with Retry-After
std::string body_of(const ApiError& error);   // its JSON

}  // namespace espalier::serve
