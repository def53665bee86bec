// SPDX-License-Identifier: Apache-2.0
// The items of the suites crowded, in-context and screens. items.h is what others include.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "synth/items.h"

namespace espalier::synth {

std::vector<Cell> make_crowded_cells();
constexpr bool is_crowded(const Cell& cell) {
  return cell.task >= Cell::Task::kCrowded;
}
Item make_crowded_item(const Cell& cell, Split split, uint64_t seed, uint64_t index, const Difficulty& difficulty);

// The stream that decides what an item asks; its first draw names the stream of its scenes' seeds.
Draws item_draws(const Cell& cell, Split split, uint64_t seed, uint64_t index);

template <size_t n>
std::vector<std::string> as_choices(const std::array<std::string_view, n>& names) {
  return {names.begin(), names.end()};
}

}  // namespace espalier::synth
