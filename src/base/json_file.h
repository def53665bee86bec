// SPDX-License-Identifier: Apache-2.0
// Text and JSON files of a checkpoint, read so that every complaint is an Error that names file, field and what came.
// Callers that look into the JSON include <nlohmann/json.hpp> in their .cpp; this header does not.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace espalier {

std::string read_text_file(const std::filesystem::path& file);

enum class DuplicateKeys { kLastWins, kRefuse };

// `name` (a file) opens the message of every Error, followed by line and column.
nlohmann::json parse_json(std::string_view text, const std::string& name,
                          DuplicateKeys duplicates = DuplicateKeys::kLastWins);
nlohmann::json read_json_file(const std::filesystem::path& file, DuplicateKeys duplicates = DuplicateKeys::kLastWins);

// The fields of one JSON object, read strictly: a missing or null field is nullopt, one of another type an Error
// "NAME: field "KEY": expected …, got …". Holds references: object and name must outlive it.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, const std::string& name, std::string prefix = "");

  const nlohmann::json* find(const char* key) const;  // nullptr when missing or null
  std::optional<bool> boolean(const char* key) const;
  std::optional<int64_t> integer(const char* key) const;
  std::optional<double> number(const char* key) const;  // finite
  std::optional<std::string> string(const char* key) const;
  std::optional<std::vector<double>> numbers(const char* key) const;

  [[noreturn]] void fail(const char* key, const std::string& expected) const;

 private:
  const nlohmann::json& object_;
  const std::string& name_;
  std::string prefix_;  // path of the object within the file, "size." for example
};

}  // namespace espalier
