// SPDX-License-Identifier: Apache-2.0
// VisPruner on one crop, docs/specs/vispruner.md in float64 loops, over a made-up or a recorded run.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "tests/support/array_signals.h"

namespace espalier::test {

// The `number` of `crop` that stay, ascending. output: a row for each token; look: class attention; pins: tokens.
inline std::vector<int64_t> vispruner_loops(const Matrix& output, const std::function<double(int64_t)>& look,
                                            const std::vector<int64_t>& crop, int64_t number, double important_ratio,
                                            int64_t per_round, const std::vector<int64_t>& pins = {}) {
  using Tokens = std::vector<int64_t>;
  const auto is_pinned = [&](int64_t t) { return std::ranges::count(pins, t) > 0; };
  const auto likeness = [&](int64_t a, int64_t b) {
    return cosine(output, a, {output.values.begin() + b * output.cols, output.values.begin() + (b + 1) * output.cols});
  };
  Tokens list = crop;
  std::ranges::stable_sort(
      list, [&](int64_t a, int64_t b) { return is_pinned(a) != is_pinned(b) ? is_pinned(a) : look(a) > look(b); });
  const int64_t important =
      std::max<int64_t>(static_cast<int64_t>(std::floor(static_cast<double>(number) * important_ratio + 1e-9)),
                        std::ranges::count_if(crop, is_pinned));
  Tokens kept(list.begin(), list.begin() + important);
  list.erase(list.begin(), list.begin() + important);
  if (number == important) list.clear();
  while (std::ssize(list) > number - important) {
    Tokens left, right;
    for (int64_t i = 0; i < std::ssize(list); ++i) (i % 2 == 0 ? left : right).push_back(list[static_cast<size_t>(i)]);
    const auto closest = [&](int64_t a) {
      double most = -2;
      for (const int64_t b : right) most = std::max(most, likeness(a, b));
      return most;
    };
    std::ranges::stable_sort(left, [&](int64_t a, int64_t b) { return closest(a) > closest(b); });
    for (int64_t dropped = 0, most = std::ssize(list) - (number - important);
         dropped < std::min(per_round, most) && !left.empty(); ++dropped)
      left.erase(left.begin());
    list = left;
    list.insert(list.end(), right.begin(), right.end());
  }
  kept.insert(kept.end(), list.begin(), list.end());
  std::ranges::sort(kept);
  return kept;
}

}  // namespace espalier::test
