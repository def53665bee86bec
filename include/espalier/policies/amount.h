// SPDX-License-Identifier: Apache-2.0
// How much a policy keeps, as the user states it. Exact: 2/9 of 576 tokens is 128, where 0.2222 would lose one to a
// floor. What a pool is (the request, each image, each crop) is said by each policy.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace espalier {

struct Fraction {
  int64_t num = 0;
  int64_t den = 1;
  bool operator==(const Fraction&) const = default;
};

// Exactly one of the two, where a policy takes an amount.
struct Amount {
  std::optional<Fraction> keep_ratio = {};  // of the unpruned pool, in (0, 1]
  std::optional<int64_t> num_kept = {};     // tokens of the pool; a number above its size keeps the pool
  bool operator==(const Amount&) const = default;
};

// The same for policies that drop in stages: one of the two, one entry a stage, never rising. A single ratio r is r,
// r/2, r/4, ….
struct StageAmounts {
  std::vector<Fraction> keep_ratio = {};
  std::vector<int64_t> num_kept = {};
  bool operator==(const StageAmounts&) const = default;
};

enum class Rounding : uint8_t {
  kNearestEven,
  kFloor,  // floor(x + 1e-9)
  kCeil,   // ceil(x - 1e-9)
};

}  // namespace espalier
