// SPDX-License-Identifier: Apache-2.0
// The table of `espalier bench --markdown`: what each policy costs and saves on one prompt, with the conventions it
// counts by. Not the benchmark itself (bench.cpp).
#pragma once

#include <string>
#include <vector>

#include "espalier/generation.h"
#include "espalier/pruning.h"

namespace espalier::cli {

// Every policy of the table that this model runs, the unpruned run first: at 2/9 of the image tokens, or at the nearest
// that the method knows, or with its own schedule. `left_out` gets a line for each that is missing, with the reason.
std::vector<std::string> every_policy(const ModelFacts& model, std::vector<std::string>& left_out);

struct CostRow {
  std::string policy;
  Stats stats;
  double first_token_ms = 0;  // medians
  double select_ms = 0;
};

// `heading` is the line above the table: model, prompt, machine, runs. Shares refer to the first row.
std::string cost_table(const std::string& heading, const std::vector<CostRow>& rows,
                       const std::vector<std::string>& left_out);

}  // namespace espalier::cli
