// SPDX-License-Identifier: Apache-2.0
// What a training run leaves on disk so that it can go on bit by bit after a kill at any moment: masters, both moments
// of the optimizer and the counters, in one safetensors file that is replaced whole. Data and schedule need no state of
// their own: both are functions of (seed, stage, step).
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "training/adamw.h"
#include "training/parameters.h"

namespace espalier {

// `counters` are the run's own words (stage, seed, step, finished, …).
using Counters = std::map<std::string, std::string>;

void save_state(const std::filesystem::path& file, const Parameters& parameters, const AdamW& optimizer,
                const std::vector<std::string>& trained, const Counters& counters);

Counters read_counters(const std::filesystem::path& file);

// Both throw Error naming the file and the tensor that is missing, of another shape, or not there in the run.
// Only names that begin with `prefix` are read.
void load_parameters(const std::filesystem::path& file, Parameters& parameters, std::string_view prefix = {});
Counters load_state(const std::filesystem::path& file, Parameters& parameters, AdamW& optimizer,
                    const std::vector<std::string>& trained);

}  // namespace espalier
