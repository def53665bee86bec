// SPDX-License-Identifier: Apache-2.0
// HiPrune on one crop, docs/specs/hiprune.md in float64 loops, over a made-up or a recorded run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace espalier::test {

// What loops know of a token.
struct HipruneLooks {
  std::function<double(int64_t)> object, deep;
  std::function<int64_t(int64_t)> row, col;
};

// The `number` of `crop` that stay, ascending. pins: tokens.
inline std::vector<int64_t> hiprune_loops(const HipruneLooks& looks, const std::vector<int64_t>& crop, int64_t number,
                                          double alpha, const std::vector<int64_t>& pins = {}) {
  using Tokens = std::vector<int64_t>;
  const auto is_in = [](const Tokens& tokens, int64_t t) { return std::ranges::count(tokens, t) > 0; };
  const auto by = [&](const std::function<double(int64_t)>& look) {
    Tokens order = crop;
    std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return look(a) > look(b); });
    return order;
  };
  const Tokens by_object = by(looks.object), by_deep = by(looks.deep);
  const auto k = std::min<int64_t>(static_cast<int64_t>(std::nearbyint(static_cast<double>(number) * alpha / 5)),
                                   std::ssize(crop));
  const Tokens anchors(by_object.begin(), by_object.begin() + k);
  Tokens wanted;  // in the order in which they are taken
  for (const int64_t t : crop)
    if (is_in(pins, t)) wanted.push_back(t);
  wanted.insert(wanted.end(), anchors.begin(), anchors.end());
  for (const int64_t t : by_object)
    for (const int64_t a : anchors) {
      const int64_t down = looks.row(t) - looks.row(a), right = looks.col(t) - looks.col(a);
      if (down * down + right * right == 1) wanted.push_back(t);
    }
  wanted.insert(wanted.end(), by_deep.begin(), by_deep.end());
  Tokens kept;
  for (const int64_t t : wanted)
    if (std::ssize(kept) < number && !is_in(kept, t)) kept.push_back(t);
  std::ranges::sort(kept);
  return kept;
}

}  // namespace espalier::test
