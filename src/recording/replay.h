// SPDX-License-Identifier: Apache-2.0
// Walks a policy's points on recorded signals, without a model: what the policy would keep, as JSON.
#pragma once

#include <filesystem>

#include "espalier/pruning.h"

namespace espalier {

struct ReplayFiles {
  std::filesystem::path signals;
  std::filesystem::path layout;
  std::filesystem::path out;  // JSON; new vectors go to a sibling .safetensors
};

// Throws Error when a signal that the policy needs was not recorded (naming it), or a file contradicts another.
void replay(const PolicyPtr& policy, const ReplayFiles& files);

}  // namespace espalier
