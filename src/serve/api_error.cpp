// SPDX-License-Identifier: Apache-2.0
#include "serve/api_error.h"

#include <nlohmann/json.hpp>

namespace espalier::serve {

namespace {

const char* type_of(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

}  // namespace

std::string body_of(const ApiError& error) {
  using Json = nlohmann::ordered_json;
  const Json json = {{"error",
                      {{"message", error.message},
                       {"type", type_of(error.status)},
                       {"param", error.param.empty() ? Json() : Json(error.param)},
                       {"code", error.code}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

HttpAnswer answer_of(const ApiError& error) {
  HttpAnswer answer{.status = error.status, .body = body_of(error) + "\n", .headers = {}};
  if (error.status == 429 || error.status == 503) answer.headers.emplace_back("Retry-After", "1");
  if (error.status == 401) answer.headers.emplace_back("WWW-Authenticate", "Bearer");
  return answer;
}

}  // namespace espalier::serve
