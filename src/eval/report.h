// SPDX-License-Identifier: Apache-2.0
// What an evaluation looks like on paper: JSON for programs, Markdown tables, and a plot as SVG.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "eval/evaluate.h"

namespace espalier::eval {

// What was asked of whom.
struct EvalContext {
  std::string difficulty;
  uint64_t seed = 0;
  int64_t items = 0;
  std::string command;  // that makes the same again; empty: there is none
};

// `head`: how JSON outputs begin (result_json.h).
std::string to_json(const EvalResult& result, const EvalContext& context, const nlohmann::ordered_json& head);

// One table per suite, one row per policy: accuracy in percent with half the width of its interval, and a star where
// the difference to the unpruned model is beyond chance (95 %); then controls and, over all cells, what each policy
// costs.
std::string to_markdown(const EvalResult& result, const EvalContext& context);

// One panel per cell: accuracy over image tokens per layer, one line per policy (specs that differ in the amount alone
// joined), the unpruned model dashed, chance dotted. More than kLinesPerBlock lines go on in panels of their own. Where
// all policies are `vtw:layer=L`, over L instead: the curve of late reading.
std::string to_svg(const EvalResult& result);

}  // namespace espalier::eval
