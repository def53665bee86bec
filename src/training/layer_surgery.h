// SPDX-License-Identifier: Apache-2.0
// Makes a trained decoder read its pictures later without changing its depth: layers it hardly needs go, layers that do
// nothing yet come in front. A decoder that reads in its first two layers makes every policy behind them look perfect.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "families/llava/config.h"
#include "training/language_task.h"
#include "training/parameters.h"

namespace espalier {

// The `count` layers, not the first, without which the task's loss stays lowest: all choices are tried.
std::vector<int> least_needed_layers(const LlavaConfig& config, const Parameters& parameters, const LanguageTask& task,
                                     int count);

// Removes these layers and puts as many fresh ones in front that write nothing (o_proj = down_proj = 0).
void move_layers_back(const LlavaConfig& config, Parameters& parameters, const std::vector<int>& removed,
                      uint64_t seed);

// The first `count` layers write nothing (o_proj = down_proj = 0): while they are not trained, the others read all that
// is read.
void silence_first_layers(Parameters& parameters, int count);

// What the names of a layer's parameters begin with.
std::string layer_prefix(int layer);

}  // namespace espalier
