// SPDX-License-Identifier: Apache-2.0
// What `espalier policies` prints without options: made while building, by write_policy_list.cpp.
#pragma once

#include <string_view>

namespace espalier::cli {

extern const std::string_view kPolicyList;

}  // namespace espalier::cli
