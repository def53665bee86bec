// SPDX-License-Identifier: Apache-2.0
// What policies that drop in stages share: at which layers, and how much at each.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/policies/options.h"

namespace espalier {

// Layers published for 32, in proportion to the depth, to the nearest (halves up).
std::vector<int> scaled_layers(std::span<const int> of_32, int num_layers);
// Throws Error unless they ascend from `lowest` to at most the depth.
void check_stage_layers(std::string_view policy, std::span<const int> layers, int lowest, int num_layers);

// One Amount for each of `stages`. Throws Error when there is none, both, one out of range or rising, or another number
// of them (but for the single ratio).
std::vector<Amount> amounts_of_stages(std::string_view policy, const StageAmounts& amounts, size_t stages);

// keep_ratio and num_kept as lists. Numbers replace the ratios that hold by default.
template <typename T>
Option<T> stage_ratios(StageAmounts T::*amounts, std::string_view meaning) {
  return {"keep_ratio", [amounts](auto& options) -> auto& {return (options.*amounts).keep_ratio;
}
, meaning
};  // namespace espalier
}
template <typename T>
Option<T> stage_numbers(StageAmounts T::*amounts) {
  Option<T> option(
      "num_kept", [amounts](auto& options) -> auto& { return (options.*amounts).num_kept; },
      "numbers that stay, one for each layer; these or keep_ratio");
  option.read = [amounts](T& options, std::string_view text, const ReadContext& context) {
    if (!context.has("keep_ratio")) (options.*amounts).keep_ratio.clear();
    return read_value(text, (options.*amounts).num_kept);
  };
  return option;
}

}  // namespace espalier
