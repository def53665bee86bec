// SPDX-License-Identifier: Apache-2.0
// `ttft=` and `kv=` of a spec, which stand in place of an amount (espalier/target.h).
#pragma once

#include <optional>
#include <vector>

#include "espalier/policies/table.h"
#include "espalier/target.h"
#include "pruning/policy_spec.h"

namespace espalier {

// What the table says of them, for each policy that takes a keep_ratio.
std::vector<PolicyOption> target_options();

// Takes them out of a spec. Throws Error for a value that is none, and for an amount beside them.
std::optional<Target> take_target(PolicySpec& spec);

}  // namespace espalier
