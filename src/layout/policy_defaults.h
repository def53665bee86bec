// SPDX-License-Identifier: Apache-2.0
// What a model's folder says of options that a policy leaves open, {"catp": {"k": 3}}: policy_defaults.json of the
// folder, and the same object in a recorded layout.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <vector>

#include "espalier/model_facts.h"

namespace espalier {

class JsonFields;

nlohmann::ordered_json to_json(std::span<const PolicyDefault> defaults);
// Throws Error, naming the field, for a policy or an option that is not in the table, and for one whose default is
// fixed or an amount: only what a spec may leave open can be set.
std::vector<PolicyDefault> read_policy_defaults(const JsonFields& fields);
// None where the folder has no such file.
std::vector<PolicyDefault> policy_defaults_of(const std::filesystem::path& folder);

}  // namespace espalier
