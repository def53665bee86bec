// SPDX-License-Identifier: Apache-2.0
// The spec string `name:option=value,option=value`, joined by ` + ` to pipelines. What a name means is policies.cpp's,
// what an option means option_set.h's.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "espalier/policies/amount.h"

namespace espalier {

struct PolicySpec {
  std::string name;
  std::vector<std::pair<std::string, std::string>> options;  // in the order written
};

// One entry for each policy of the pipeline. Throws Error where the form is broken.
std::vector<PolicySpec> parse_policy_spec(std::string_view text);

// `a/b`, or a decimal taken as written; reduced. Nothing when it is neither.
std::optional<Fraction> parse_fraction(std::string_view text);

}  // namespace espalier
