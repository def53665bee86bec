// SPDX-License-Identifier: Apache-2.0
#include "families/positions.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>

namespace espalier {

namespace {

int64_t length(const PromptLayout& layout) {
  return layout.segments.empty() ? 0 : layout.segments.back().end;
}

}  // namespace

PromptPositions plain_positions(const PromptLayout& layout) {
  const int64_t n = length(layout);
  return {at::arange(n, at::kLong), n};
}

PromptPositions mrope_positions(const PromptLayout& layout) {
  const int64_t n = length(layout);
  PromptPositions positions{at::empty({3, n}, at::kLong), 0};
  int64_t* time = positions.ids.data_ptr<int64_t>();
  int64_t *height = time + n, *width = height + n;
  for (const Segment& s : layout.segments) {
    const bool is_text = s.kind == Segment::Kind::kText;
    for (int64_t t = s.begin; t < s.end; ++t) {
      const int64_t i = t - s.begin;
      time[t] = positions.next + (is_text ? i : 0);
      height[t] = positions.next + (is_text ? i : i / s.grid.cols);
      width[t] = positions.next + (is_text ? i : i % s.grid.cols);
    }
    positions.next += is_text ? s.end - s.begin : std::max(s.grid.rows, s.grid.cols);
  }
  return positions;
}

}  // namespace espalier
