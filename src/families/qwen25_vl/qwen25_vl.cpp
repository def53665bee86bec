// SPDX-License-Identifier: Apache-2.0
#include "families/qwen25_vl/qwen25_vl.h"

#include <algorithm>

#include "families/qwen_vl/qwen_vl.h"
#include "model/config_section.h"

namespace espalier {

namespace {

using Json = nlohmann::json;

PatchVitConfig read_vision(const Section& s) {
  const std::string type = s.text("model_type", "qwen2_5_vl");
  if (type != "qwen2_5_vl" && type != "qwen2_5_vl_vision") s.fail("model_type", "qwen2_5_vl");
  PatchVitConfig v;
  v.norm = PatchVitConfig::Norm::kRms;
  v.mlp = PatchVitConfig::Mlp::kGated;
  read_patch_sizes(s, v);
  v.hidden_size = s.integer("hidden_size", int64_t{3584}, 1, kLarge);
  v.intermediate_size = s.integer("intermediate_size", int64_t{3420}, 1, kLarge);
  v.window_size = s.integer("window_size", int64_t{112}, v.merge_size * v.patch_size, kLarge);
  if (read_activation(s, "hidden_act", "silu") != Activation::kSilu) s.fail("hidden_act", "silu");
  check_heads(s, v, "hidden_size");
  v.full_attention_layers = {7, 15, 23, 31};
  if (s.has("fullatt_block_indexes")) {
    const Json& layers = s.at("fullatt_block_indexes");
    if (!layers.is_array() || !std::ranges::all_of(layers, [](const Json& l) { return l.is_number_integer(); }))
      s.fail("fullatt_block_indexes", "a list of layers");
    v.full_attention_layers = layers.get<std::vector<int>>();
  }
  return v;
}

}  // namespace

QwenVlConfig read_qwen25_vl_config(const Section& root) {
  return read_qwen_vl_config(root, read_vision(root.section("vision_config")), "out_hidden_size");
}

ModelConfig read_qwen25_vl(const Section& root) {
  return describe(read_qwen25_vl_config(root));
}

}  // namespace espalier
