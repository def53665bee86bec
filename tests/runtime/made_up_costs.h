// SPDX-License-Identifier: Apache-2.0
// Files of costs that no machine has, so that what is expected of a request can be counted by hand.
#pragma once

#include <ATen/Parallel.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "runtime/costs_file.h"
#include "tests/runtime/scratch_folder.h"

namespace espalier::test {

// Milliseconds of the terms that are named; all others cost nothing.
using NamedCosts = std::map<std::string, double>;

template <typename Of>
StageCosts costs_of(std::span<const CostTerm<Of>> terms, const NamedCosts& named) {
  StageCosts costs;
  for (const CostTerm<Of>& term : terms) {
    const auto found = named.find(std::string(term.name));
    costs.of_term.push_back(found == named.end() ? 0 : found->second);
  }
  return costs;
}

struct MadeUpCosts {
  NamedCosts encode, prefill;
  std::map<std::string, NamedCosts> select;
};

// Of a checkpoint in float32 on the CPU, with as many threads as this process has.
inline CostsFile made_up_costs(const std::filesystem::path& model, const MadeUpCosts& costs) {
  MeasuredCosts measured;
  measured.setup = {.dtype = "f32", .device = "cpu", .threads = at::get_num_threads()};
  measured.passes = 1;
  measured.model.encode = costs_of(encode_terms(), costs.encode);
  measured.model.prefill = costs_of(prefill_terms(), costs.prefill);
  for (const auto& [policy, of] : costs.select) measured.model.select[policy] = costs_of(select_terms(), of);
  return {.model = digest_of_model(model), .machine = name_of_machine(), .costs = {measured}};
}

}  // namespace espalier::test
