// SPDX-License-Identifier: Apache-2.0
// The spec string `name:option=value,option=value`, joined by ` + ` to pipelines. What a name means is policies.cpp's,
// what an option means espalier/policies/options.h's.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "espalier/policies/options.h"

namespace espalier {

struct PolicySpec {
  std::string name;
  std::vector<GivenOption> options;  // in the order written
};

// One entry for each policy of the pipeline. Throws Error where the form is broken.
std::vector<PolicySpec> parse_policy_spec(std::string_view text);

}  // namespace espalier
