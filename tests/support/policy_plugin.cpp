// SPDX-License-Identifier: Apache-2.0
#include "tests/support/policy_plugin.h"

namespace espalier::test {

std::filesystem::path policy_plugin() {
  return ESPALIER_POLICY_PLUGIN_FILE;
}

}  // namespace espalier::test
