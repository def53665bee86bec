// SPDX-License-Identifier: Apache-2.0
// What `espalier policies` prints: the built-in policies with their options. The table is also what a spec string is
// checked against. No libtorch type appears here.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/act_point.h"
#include "espalier/model_facts.h"

namespace espalier {

struct PolicyOption {
  std::string_view name;
  std::string default_value;  // as it would be written; empty: there is none, see `meaning`
  std::string_view meaning;
};

// A spec that runs on small models, for tests and tables. `kept.json` and `recipe.json` stand for files.
struct PolicyExample {
  std::string_view spec;
  bool keeps_tokens = true;  // as they are; false: others enter in their place, or pictures become smaller
};

struct PolicyEntry {
  std::string_view name = {};
  std::string_view paper = {};
  std::string_view summary = {};
  std::vector<Site> sites = {};
  std::string_view needs = {};  // of the model, in words
  // Why this model cannot run the policy with default options; empty when it can.
  std::string (*refusal)(const ModelFacts& model) = nullptr;
  std::vector<PolicyExample> examples = {};  // at least one
  std::vector<PolicyOption> options = {};    // its own; every policy also takes common_policy_options()
};

std::span<const PolicyEntry> policy_table();
std::span<const PolicyOption> common_policy_options();

}  // namespace espalier
