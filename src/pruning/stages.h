// SPDX-License-Identifier: Apache-2.0
// What policies that drop in stages share: at which layers, and how much at each.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "espalier/policies/amount.h"
#include "pruning/policy_spec.h"

namespace espalier {

// Layers published for 32, in proportion to the depth, to the nearest (halves up).
std::vector<int> scaled_layers(std::span<const int> of_32, int num_layers);
// Throws Error unless they ascend from `lowest` to at most the depth.
void check_stage_layers(std::string_view policy, std::span<const int> layers, int lowest, int num_layers);

// One Amount for each of `stages`. Throws Error when there is none, both, one out of range or rising, or another number
// of them (but for the single ratio).
std::vector<Amount> amounts_of_stages(std::string_view policy, const StageAmounts& amounts, size_t stages);

// keep_ratio and num_kept as lists, `layers`; the default where neither amount is given.
StageAmounts read_stage_amounts(const OptionReader& reader, const StageAmounts& default_amounts);
std::vector<int> read_layers(const OptionReader& reader);
void write_stage_amounts(SpecWriter& writer, const StageAmounts& amounts, const StageAmounts& default_amounts);
void write_layers(SpecWriter& writer, std::span<const int> layers);

}  // namespace espalier
