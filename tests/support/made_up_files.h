// SPDX-License-Identifier: Apache-2.0
// The examples of the policy table as tests run them. What they name in place of files: a recipe for 8 layers, and kept
// sets that keep all.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
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

// Of a spec: whether its policy acts at caches alone.
inline bool cuts_caches(const std::string& spec) {
  const std::string name = spec.substr(0, spec.find(':'));
  return std::ranges::any_of(policy_table(), [&](const PolicyEntry& entry) {
    return entry.name == name && entry.sites == std::vector{Site::kCache};
  });
}

// Those that leave tokens as they are.
inline std::vector<std::string> selecting_examples() {
  return examples_where([](const PolicyEntry&, const PolicyExample& example) { return example.keeps_tokens; });
}

// Those that name no file, and `more` behind them.
inline std::vector<std::string> examples_and(std::initializer_list<const char*> more) {
  std::vector<std::string> specs = examples_where([](const PolicyEntry&, const PolicyExample& example) {
    return example.spec.find(".json") == std::string_view::npos;
  });
  for (const char* spec : more)
    if (std::ranges::find(specs, spec) == specs.end()) specs.emplace_back(spec);
  return specs;
}

// A spec with its amount open: "@" in place of keep_ratio=… or num_kept=…; empty where it has none.
inline std::string with_open_amount(std::string spec) {
  for (const char* name : {"keep_ratio=", "num_kept="})
    if (const size_t begin = spec.find(name); begin != std::string::npos)
      return spec.replace(begin, std::min(spec.find_first_of(",+ ", begin), spec.size()) - begin, "@");
  return "";
}

// A spec as the name of a test.
inline std::string test_name(const std::string& spec) {
  std::string name;
  for (const char c : spec) name += (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ? c : c == '+' ? 'p' : '_';
  return name;
}

}  // namespace espalier::test
