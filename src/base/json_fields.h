// SPDX-License-Identifier: Apache-2.0
// The fields of one JSON object, read strictly: a field of another type, out of its range, or one that must be there
// and is not, is an Error "FILE: field "PATH.KEY": expected …, got …". For files of checkpoints, tokenizers,
// processors, layouts, recipes: whoever reads JSON that others wrote.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

// Holds references: the JSON value and the file's name must outlive it.
class JsonFields {
 public:
  static constexpr int64_t kLeast = std::numeric_limits<int64_t>::min();
  static constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

  // `prefix`: the object's path within the file and a dot, "model.vocab." or "decoders[1]."; "" for the whole file.
  JsonFields(const nlohmann::json& object, const std::string& file, std::string prefix = "");
  JsonFields(const nlohmann::json& object, std::string&& file, std::string prefix = "") = delete;

  const nlohmann::json& value() const { return *object_; }

  // nullptr, false and nullopt when the field is missing or null.
  const nlohmann::json* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<int64_t> integer(std::string_view key, int64_t low = kLeast, int64_t high = kMost) const;
  std::optional<double> number(std::string_view key) const;  // finite
  std::optional<std::string> string(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;
  std::optional<std::vector<int64_t>> integers(std::string_view key, int64_t low = kLeast, int64_t high = kMost) const;
  std::optional<JsonFields> object(std::string_view key) const;
  JsonFields without_fields(std::string_view key) const;  // in place of an object that is missing: nothing stands in it

  // The same of fields that must be there.
  int64_t integer_at(std::string_view key, int64_t low = kLeast, int64_t high = kMost) const;
  double number_at(std::string_view key) const;
  std::string string_at(std::string_view key) const;
  std::vector<int64_t> integers_at(std::string_view key, int64_t low = kLeast, int64_t high = kMost) const;
  const nlohmann::json& list_at(std::string_view key) const;
  JsonFields object_at(std::string_view key) const;
  std::vector<JsonFields> objects_at(std::string_view key) const;  // of a list of objects

  std::string path() const;                       // of the object within the file
  std::string field(std::string_view key) const;  // "FILE: field "PATH.KEY"", to open a message about it
  std::string place() const;                      // "FILE: PATH", to open a message about the whole object
  [[noreturn]] void fail(std::string_view key, std::string_view expected) const;

 private:
  const nlohmann::json* object_;
  const std::string* file_;
  std::string prefix_;
};

// A value as messages show it: its text, cut where it is too long for a line.
std::string shown_json(const nlohmann::json& value);

}  // namespace espalier
