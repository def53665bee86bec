// SPDX-License-Identifier: Apache-2.0
#include "questions/question_file.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "base/json_lines.h"
#include "espalier/error.h"

namespace espalier {

namespace {

using nlohmann::json;

std::vector<std::filesystem::path> read_images(const JsonFields& fields, const std::filesystem::path& folder) {
  const json* image = fields.find("image");
  if (!image) return {};
  const json list = image->is_array() ? *image : json::array({*image});
  std::vector<std::filesystem::path> images;
  for (const json& one : list) {
    if (!one.is_string()) fields.fail("image", "a path or a list of paths");
    images.push_back(folder / one.get<std::string>());
    std::error_code code;
    if (!std::filesystem::is_regular_file(images.back(), code))
      throw Error(fields.field("image") + ": there is no picture " + images.back().string());
  }
  return images;
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& file, const std::filesystem::path& image_folder) {
  std::vector<Question> questions;
  for (const auto& [line, where] : json_lines(read_text_file(file, limits::kDataFileBytes), file.string())) {
    const JsonFields fields(line, where);
    const json* id = fields.find("question_id");
    if (!id || !(id->is_string() || id->is_number_integer())) fields.fail("question_id", "a whole number or a string");
    questions.push_back({.id = id->dump(),
                         .images = read_images(fields, image_folder),
                         .text = fields.string_at("text"),
                         .where = where});
  }
  if (questions.empty()) throw Error(file.string() + ": there is no question in it");
  return questions;
}

}  // namespace espalier
