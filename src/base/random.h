// SPDX-License-Identifier: Apache-2.0
// SplitMix64 (Steele, Lea, Flood 2014) as docs/specs/random.md fixes it, so that every implementation draws the same
// tokens.
#pragma once

#include <cstdint>

namespace espalier {

class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t seed) : state_(seed) {}

  // The generator of one stream: seeded with the (stream + 1)-th output of SplitMix64(seed).
  static SplitMix64 of_stream(uint64_t seed, uint64_t stream) {
    SplitMix64 seeds(seed + stream * kGamma);  // outputs depend on the state alone, which moves by kGamma
    return SplitMix64(seeds.next());
  }

  uint64_t next() {
    state_ += kGamma;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  // Uniform in [0, m), without the bias of a plain remainder.
  uint64_t below(uint64_t m) {
    const uint64_t reject = (0 - m) % m;  // 2^64 mod m
    uint64_t draw = next();
    while (draw < reject) draw = next();
    return draw % m;
  }

 private:
  static constexpr uint64_t kGamma = 0x9E3779B97F4A7C15;
  uint64_t state_;
};

}  // namespace espalier
