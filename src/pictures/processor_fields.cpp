// SPDX-License-Identifier: Apache-2.0
#include "pictures/processor_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <vector>

#include "base/json_file.h"

namespace espalier {
namespace {

constexpr std::array<const char*, 6> kFilters = {"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
constexpr int64_t kBicubic = 3;

}  // namespace

nlohmann::json read_processor_config(const std::filesystem::path& folder, std::string& file) {
  const std::filesystem::path combined = folder / "processor_config.json";
  std::error_code ignored;
  if (std::filesystem::exists(combined, ignored)) {
    file = combined.string();
    const nlohmann::json config = read_json_file(combined);
    if (const nlohmann::json* nested = JsonFields(config, file).find("image_processor")) return *nested;
  }
  file = (folder / "preprocessor_config.json").string();
  return read_json_file(file);
}

std::string processor_type(const JsonFields& fields) {
  std::string type = fields.string("image_processor_type").value_or("");
  for (const std::string_view suffix : {"Fast", "Pil"})
    if (type.ends_with(suffix)) type.resize(type.size() - suffix.size());
  return type;
}

void check_bicubic(const JsonFields& fields) {
  const int64_t filter = fields.integer("resample").value_or(kBicubic);
  if (filter == kBicubic) return;
  const bool known = filter >= 0 && filter < static_cast<int64_t>(kFilters.size());
  const std::string name = known ? std::string(" (this is ") + kFilters[static_cast<size_t>(filter)] + ")" : "";
  fields.fail("resample", "3, bicubic" + name);
}

void read_channels(const JsonFields& fields, const char* key, std::array<double, 3>& out) {
  const nlohmann::json* value = fields.find(key);
  if (!value) return;
  if (value->is_number()) {
    out.fill(*fields.number(key));
    return;
  }
  const std::vector<double> numbers = *fields.numbers(key);
  if (numbers.size() != out.size()) fields.fail(key, "three numbers");
  std::copy(numbers.begin(), numbers.end(), out.begin());
}

}  // namespace espalier
