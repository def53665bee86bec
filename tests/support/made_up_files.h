// SPDX-License-Identifier: Apache-2.0
// The examples of the policy table as tests run them. What they name in place of files: a recipe for 8 layers, and kept
// sets that keep all.
#pragma once

#include <string>
#include <vector>

#include "espalier/error.h"
#include "espalier/policies/atp.h"
#include "espalier/policies/fitprune.h"
#include "espalier/policies/keepmask.h"
#include "espalier/policies/table.h"
#include "espalier/policies/vtw.h"

namespace espalier::test {

struct MadeUpFiles final : PolicyFiles {
  AtpWeights atp_weights(const std::string& file) const override { throw Error(file + ": no such file"); }
  FitpruneRecipe fitprune_recipe(const std::string& file) const override {
    return {.name = file, .num_visual = 16, .deleted = {3, 0, 4, 2, 0, 1, 3, 2}};
  }
  KeptSets kept_sets(const std::string& file) const override { return {.file = file, .points = {}}; }
  VtwRecipe vtw_recipe(const std::string& file) const override { return {.file = file, .num_layers = 8, .layer = 5}; }
};

inline PolicyPtr make_example(const std::string& spec) {
  return make_policy(spec, MadeUpFiles());
}

// Specs of the table's examples for which `is_wanted(entry, example)` holds.
template <typename Wanted>
std::vector<std::string> examples_where(Wanted&& is_wanted) {
  std::vector<std::string> specs;
  for (const PolicyEntry& entry : policy_table())
    for (const PolicyExample& example : entry.examples)
      if (is_wanted(entry, example)) specs.emplace_back(example.spec);
  return specs;
}

// Those that leave tokens as they are.
inline std::vector<std::string> selecting_examples() {
  return examples_where([](const PolicyEntry&, const PolicyExample& example) { return example.keeps_tokens; });
}

// A spec as the name of a test.
inline std::string test_name(const std::string& spec) {
  std::string name;
  for (const char c : spec) name += (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ? c : c == '+' ? 'p' : '_';
  return name;
}

}  // namespace espalier::test
