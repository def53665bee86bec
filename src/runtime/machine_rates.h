// SPDX-License-Identifier: Apache-2.0
// What the machine reaches at best, measured on the spot, so that a benchmark can print its ceilings beside its
// results.
#pragma once

#include <cstdint>

namespace espalier {

class Engine;

struct MachineRates {
  double matrix_flops = 0;    // operations a second of a large product of matrices in the model's dtype
  double read_bytes = 0;      // bytes a second of one pass over memory that no cache holds
  int64_t bytes_a_token = 0;  // weights that every decoded token reads
};

// About a second on the CPU.
MachineRates measure_rates(const Engine& engine);

}  // namespace espalier
