// SPDX-License-Identifier: Apache-2.0
// The families of models that Espalier knows, and config.json read by the one that it names.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "families/model_config.h"

namespace espalier {

class Section;

struct Family {
  std::string_view name;        // as people say it
  std::string_view model_type;  // as config.json says it
  ModelConfig (*read)(const Section& root);
};
std::span<const Family> families();

// Parses config.json; `name` stands in errors. Throws Error on an unknown architecture, a value out of range, or a key
// of the wrong type.
ModelConfig parse_config(std::string_view json, const std::string& name);

// Every tensor that a checkpoint of this config holds, with its shape, in file order: for writing one.
struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};
std::vector<NamedShape> weight_names(const ModelConfig& config);

}  // namespace espalier
