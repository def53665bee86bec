// SPDX-License-Identifier: Apache-2.0
#include "layout/policy_defaults.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>

#include "base/json_fields.h"
#include "base/json_file.h"
#include "espalier/policies/table.h"

namespace espalier {

namespace {

// What a spec says of how much stays; a model has no say in it.
constexpr std::array<std::string_view, 4> kAmounts = {"keep_ratio", "num_kept", "ttft", "kv"};

}  // namespace

nlohmann::ordered_json to_json(std::span<const PolicyDefault> defaults) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const PolicyDefault& set : defaults) json[set.policy][set.option] = set.value;
  return json;
}

std::vector<PolicyDefault> read_policy_defaults(const JsonFields& fields) {
  std::vector<PolicyDefault> defaults;
  for (const auto& [policy, options] : fields.value().items()) {
    const auto entry = std::ranges::find(policy_table(), policy, &PolicyEntry::name);
    if (entry == policy_table().end()) fields.fail(policy, "the name of a policy for its key");
    const JsonFields own = fields.object_at(policy);
    for (const auto& [name, value] : own.value().items()) {
      const auto option = std::ranges::find(entry->options, name, &PolicyOption::name);
      const bool is_open = option != entry->options.end() && option->default_value.empty() &&
                           std::ranges::find(kAmounts, name) == kAmounts.end();
      if (!is_open) own.fail(name, "an option for its key that a spec may leave open, and not an amount");
      if (!value.is_string() && !value.is_number_integer()) own.fail(name, "text or an integer");
      defaults.push_back({policy, name, value.is_string() ? value.get<std::string>() : value.dump()});
    }
  }
  return defaults;
}

std::vector<PolicyDefault> policy_defaults_of(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "policy_defaults.json";
  std::error_code failure;
  if (!std::filesystem::exists(file, failure)) return {};
  const std::string name = file.string();
  const nlohmann::json json = read_json_file(file);
  return read_policy_defaults(JsonFields(json, name));
}

}  // namespace espalier
