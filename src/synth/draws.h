// SPDX-License-Identifier: Apache-2.0
// Random choices that are the same on every machine: the standard library's distributions are not.
#pragma once

#include <cstddef>
#include <utility>

#include "base/random.h"

namespace espalier::synth {

class Draws : public SplitMix64 {
 public:
  using SplitMix64::SplitMix64;

  int between(int low, int high) {
    return low + static_cast<int>(below(static_cast<uint64_t>(high) - static_cast<uint64_t>(low) + 1));
  }
  int index(size_t size) { return static_cast<int>(below(size)); }
  template <typename Range>
  void shuffle(Range& items) {  // Fisher-Yates
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[below(i)]);
  }
};

}  // namespace espalier::synth
