// SPDX-License-Identifier: Apache-2.0
// How long a request takes until its first token, before it runs: sums of a few numbers about it (tokens that enter the
// layers, their squares, pixels, …), each times what it costs on this machine.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/planned_rows.h"
#include "runtime/prompt_packer.h"

namespace espalier {

// What a request will have to do.
struct Work {
  double pictures = 0;        // that nobody has looked at before
  double picture_pixels = 0;  // of those, as they came
  double tower_values = 0;    // of the tower's input
  double tower_squares = 0;   // the same of each picture, squared
  double text_tokens = 0;
  PlannedRows rows;
};

Work work_of(const PackedPrompt& prompt, PlannedRows rows);

// One number that a stage's time is a sum of.
template <typename Of>
struct CostTerm {
  std::string_view name;
  double (*value)(const Of&);
};
std::span<const CostTerm<Work>> encode_terms();
std::span<const CostTerm<Work>> prefill_terms();
std::span<const CostTerm<PlannedSelection>> select_terms();  // of one step; a policy's time is the sum of its steps

// Milliseconds of each term, in the order of the terms.
struct StageCosts {
  std::vector<double> of_term;
};

// What one setup was measured to take.
struct CostModel {
  StageCosts encode, prefill;
  std::map<std::string, StageCosts> select;  // by spec without amount

  // Until the first token, from when the request is begun. Throws Error for a policy that was not measured.
  double milliseconds(const Work& work) const;
};

double cost_of(const StageCosts& costs, std::span<const CostTerm<Work>> terms, const Work& work);
double cost_of(const StageCosts& costs, const PlannedSelection& selection);

// What a policy's selection is known by: its spec without amounts.
std::string without_amount(std::string_view spec);

}  // namespace espalier
