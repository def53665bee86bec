// SPDX-License-Identifier: Apache-2.0
// The levels of vector instructions that tests can run on this machine.
#pragma once

#include <vector>

#include "kernels/support/cpu_level.h"

namespace espalier::test {

inline std::vector<kernels::CpuLevel> vector_levels() {
  std::vector<kernels::CpuLevel> levels;
  for (const kernels::CpuLevel level : {kernels::CpuLevel::kAvx2, kernels::CpuLevel::kAvx512, kernels::CpuLevel::kAmx})
    if (level <= kernels::cpu_level()) levels.push_back(level);
  return levels;
}

}  // namespace espalier::test
