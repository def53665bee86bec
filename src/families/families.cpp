// SPDX-License-Identifier: Apache-2.0
#include "families/families.h"

#include <array>
#include <nlohmann/json.hpp>

#include "base/error_text.h"
#include "base/json_file.h"
#include "espalier/error.h"
#include "families/llava/llava.h"
#include "families/llava_next/llava_next.h"
#include "families/qwen25_vl/qwen25_vl.h"
#include "families/qwen2_vl/qwen2_vl.h"
#include "model/config_section.h"
#include "model/weights.h"

namespace espalier {

namespace {

constexpr std::array kFamilies = {
    Family{.name = "LLaVA-1.5", .model_type = "llava", .read = read_llava},
    Family{.name = "LLaVA-NeXT", .model_type = "llava_next", .read = read_llava_next},
    Family{.name = "Qwen2-VL", .model_type = "qwen2_vl", .read = read_qwen2_vl},
    Family{.name = "Qwen2.5-VL", .model_type = "qwen2_5_vl", .read = read_qwen25_vl},
};

}  // namespace

std::span<const Family> families() {
  return kFamilies;
}

ModelConfig parse_config(std::string_view text, const std::string& name) {
  const nlohmann::json json = parse_json(text, name);
  const Section root(json, name);
  const std::string type = root.text("model_type", "(none)");
  std::string known;
  for (const Family& family : kFamilies) {
    if (family.model_type == type) {
      ModelConfig config = family.read(root);
      config.family = family.name;
      return config;
    }
    known += (known.empty() ? "" : ", ") + std::string(family.model_type);
  }
  throw Error(root.field("model_type") + ": unknown architecture " + in_quotes(type) + " (known: " + known + ")");
}

std::vector<NamedShape> weight_names(const ModelConfig& config) {
  std::vector<NamedShape> names;
  const auto note = [&](const std::string& name, at::IntArrayRef shape) {
    names.push_back({name, shape.vec()});
    return at::Tensor();
  };
  config.bind_front_end(note);
  bind_decoder(config.decoder, note);
  return names;
}

}  // namespace espalier
