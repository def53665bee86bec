// SPDX-License-Identifier: Apache-2.0
// A plugin as a user of --policy-plugin has one. Apart from folders.h, as few tests ask.
#pragma once

#include <filesystem>

namespace espalier::test {

std::filesystem::path policy_plugin();  // examples/keep_centre_policy.cpp, built

}  // namespace espalier::test
