// SPDX-License-Identifier: Apache-2.0
// One JSON object of a request, read strictly: a field of another type or out of its range is refused, and so is, at
// the end, one that nobody asked for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>

namespace espalier::serve {

// The JSON of a request's body. Throws ApiError for text that is none, or that is deeper or has more values than any
// request needs.
nlohmann::json parse_body(const std::string& body);

// Holds the object by reference. Everything throws ApiError with the field's path as `param`.
class JsonObject {
 public:
  // `path`: of the object, "messages[1]"; "" for the whole body.
  JsonObject(const nlohmann::json& object, std::string path);

  // Null counts as missing.
  const nlohmann::json* find(std::string_view key);
  const nlohmann::json& at(std::string_view key, std::string_view expected);
  std::optional<bool> boolean(std::string_view key);
  std::optional<int64_t> integer(std::string_view key, int64_t low, int64_t high);
  std::optional<double> number(std::string_view key, double low, double high);
  std::optional<std::string> string(std::string_view key);
  std::string string_at(std::string_view key);

  // Throws for the first field that none of the above asked for.
  void refuse_unknown() const;

  std::string path_of(std::string_view key) const;
  [[noreturn]] void refuse(std::string_view key, const std::string& expected) const;

 private:
  const nlohmann::json& object_;
  std::string path_;
  std::set<std::string, std::less<>> known_;
};

// A value as messages show it: itself where it is short, else its kind.
std::string shown(const nlohmann::json& value);

}  // namespace espalier::serve
