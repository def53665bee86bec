// SPDX-License-Identifier: Apache-2.0
// layout.json of record and replay: the segments of a sequence, and the depths of the model they belong to.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#include "espalier/pruning.h"
#include "espalier/token_layout.h"

namespace espalier {

struct RecordedLayout {
  std::shared_ptr<const PromptLayout> prompt;
  ModelFacts model;           // num_layers, vision_layers, vision_feature_layer and policy_defaults only
  int64_t num_generated = 0;  // tokens of the answer that were recorded
};

std::string layout_to_json(const PromptLayout& prompt, const ModelFacts& model, int64_t num_generated = 0);
// Throws Error naming `name` or the file, and the field.
RecordedLayout parse_layout(std::string_view json, const std::string& name);
RecordedLayout read_layout(const std::filesystem::path& file);

}  // namespace espalier
