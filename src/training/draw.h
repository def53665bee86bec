// SPDX-License-Identifier: Apache-2.0
// Random draws for training data on top of SplitMix64: one generator for each (seed, purpose, number), so that batch
// number n of a stage is the same whenever it is asked for.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "base/random.h"

namespace espalier {

class Draw {
 public:
  Draw(uint64_t seed, std::string_view purpose, int64_t number)
      : generator_(SplitMix64::of_stream(seed ^ hash_of(purpose), static_cast<uint64_t>(number))) {}

  int64_t below(int64_t m) { return static_cast<int64_t>(generator_.below(static_cast<uint64_t>(m))); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }  // both inclusive
  bool chance(double p) { return static_cast<double>(generator_.next() >> 11) * 0x1p-53 < p; }
  template <typename T>
  const T& one_of(const std::vector<T>& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }
  template <typename T>
  void shuffle(std::vector<T>& values) {
    for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[static_cast<size_t>(below(i))]);
  }

 private:
  static uint64_t hash_of(std::string_view text) {  // FNV-1a
    uint64_t hash = 0xCBF29CE484222325ULL;
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3ULL;
    return hash;
  }

  SplitMix64 generator_;
};

}  // namespace espalier
