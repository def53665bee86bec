// SPDX-License-Identifier: Apache-2.0
// PruMerge on one crop in float64 loops, over a made-up or a recorded run: the chosen patches, their merged vectors,
// and the weighted rest. `budget` 0: the number adapts.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/support/array_signals.h"

namespace espalier::test {

struct PrumergeLoops {
  std::vector<int64_t> chosen;
  std::vector<double> survivors, extra;
};

inline PrumergeLoops prumerge_loops(const ArraySignals& arrays, int layer, const std::vector<int64_t>& crop,
                                    int64_t budget, bool plus, int64_t neighbours) {
  using Tokens = std::vector<int64_t>;
  const Matrix &x = arrays.vision_output, &key = arrays.vision_key.at(layer), &look = arrays.joint_attention.at(layer);
  const auto n = std::ssize(crop);
  Tokens order = crop;
  std::ranges::stable_sort(order, [&](int64_t a, int64_t b) { return look.at(a, 0) > look.at(b, 0); });
  PrumergeLoops result;
  if (budget > 0) {
    const int64_t q = budget - 1, best = plus ? q / 2 : q;
    result.chosen.assign(order.begin(), order.begin() + best);
    Tokens rest(order.begin() + best, order.end());
    std::ranges::sort(rest);
    for (int64_t i = 0; i < q - best; ++i)
      result.chosen.push_back(rest[static_cast<size_t>(
          std::floor(static_cast<double>(i * std::ssize(rest)) / static_cast<double>(q - best)))]);
  } else {
    std::vector<double> sorted;
    for (const int64_t t : crop) sorted.push_back(look.at(t, 0));
    std::ranges::sort(sorted);
    const auto quantile = [&](double p) {
      const double place = p * static_cast<double>(n - 1), below = std::floor(place);
      const double low = sorted[static_cast<size_t>(below)];
      return low +
             (place - below) * (sorted[static_cast<size_t>(std::min(below + 1, static_cast<double>(n - 1)))] - low);
    };
    const double fence = quantile(.75) + 1.5 * (quantile(.75) - quantile(.25));
    int64_t outliers = 0;
    for (const int64_t t : crop) outliers += look.at(t, 0) > fence ? 1 : 0;
    outliers = std::max<int64_t>(1, outliers);
    result.chosen.assign(order.begin(), order.begin() + outliers);
    const int64_t stride = std::max<int64_t>(1, n / outliers / 3);
    for (int64_t i = 0; plus && i < n - 1; i += stride)
      if (!std::ranges::count(result.chosen, crop[static_cast<size_t>(i)]))
        result.chosen.push_back(crop[static_cast<size_t>(i)]);
  }
  std::ranges::sort(result.chosen);
  for (const int64_t i : result.chosen) {
    std::vector<double> direction(key.values.begin() + i * key.cols, key.values.begin() + (i + 1) * key.cols);
    Tokens others;
    for (const int64_t j : crop)
      if (j != i) others.push_back(j);
    std::ranges::stable_sort(
        others, [&](int64_t a, int64_t b) { return cosine(key, a, direction) > cosine(key, b, direction); });
    for (int64_t c = 0; c < x.cols; ++c) {
      double y = x.at(i, c);
      for (int64_t j = 0; j < std::min(neighbours, n - 1); ++j)
        y += look.at(others[static_cast<size_t>(j)], 0) * x.at(others[static_cast<size_t>(j)], c);
      result.survivors.push_back(y);
    }
  }
  for (int64_t c = 0; c < x.cols; ++c) {
    double e = 0;
    for (const int64_t j : crop)
      if (!std::ranges::binary_search(result.chosen, j)) e += look.at(j, 0) * x.at(j, c);
    result.extra.push_back(e);
  }
  return result;
}

}  // namespace espalier::test
