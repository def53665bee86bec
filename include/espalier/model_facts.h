// SPDX-License-Identifier: Apache-2.0
// What is known of a model before it answers: for policies, and for callers who ask what a model is and which policies
// it can run (`policy_table()[i].refusal(engine.facts())`). Plain data; no libtorch type appears here.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace espalier {

// An option of a policy that has another default on this model than the published one.
struct PolicyDefault {
  std::string policy = {};  // name of the policy table
  std::string option = {};
  std::string value = {};  // as it would be written in a spec
  bool operator==(const PolicyDefault&) const = default;
};

struct ModelFacts {
  int num_layers = 0;
  int64_t hidden_size = 0;
  int num_heads = 0;
  int num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t sliding_window = 0;  // 0: none
  bool has_mrope = false;
  int vision_layers = 0;
  int vision_feature_layer = 0;  // 0-based layer whose output the projector reads
  int vision_heads = 0;
  int64_t vision_hidden_size = 0;
  bool has_class_token = false;  // class row in the vision tower
  bool has_text_tower = false;   // a CLIP text tower paired with it

  // Names, for people: nothing is decided by them. Empty where a model is known by its recorded layout alone.
  std::string name = {};    // of its folder
  std::string family = {};  // "LLaVA-1.5", "LLaVA-NeXT", "Qwen2-VL", "Qwen2.5-VL"
  std::string dtype = {};   // what an engine computes in, else what is stored: "float32", "bfloat16" or "float16"

  // From policy_defaults.json of the folder (docs/formats.md); none: every policy has its published defaults.
  std::vector<PolicyDefault> policy_defaults = {};
};

}  // namespace espalier
