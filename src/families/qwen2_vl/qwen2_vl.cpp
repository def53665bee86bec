// SPDX-License-Identifier: Apache-2.0
#include "families/qwen2_vl/qwen2_vl.h"

#include "families/qwen_vl/qwen_vl.h"
#include "model/config_section.h"

namespace espalier {

namespace {

// The tower's width is `embed_dim`; `hidden_size` is the decoder's, which the merger gives.
PatchVitConfig read_vision(const Section& s) {
  const std::string type = s.text("model_type", "qwen2_vl");
  if (type != "qwen2_vl" && type != "qwen2_vl_vision") s.fail("model_type", "qwen2_vl");
  PatchVitConfig v;
  v.norm = PatchVitConfig::Norm::kLayer;
  v.mlp = PatchVitConfig::Mlp::kPlain;
  read_patch_sizes(s, v);
  v.hidden_size = s.integer("embed_dim", int64_t{1280}, 1, kLarge);
  v.intermediate_size = v.hidden_size * s.integer("mlp_ratio", int64_t{4}, 1, 1000);
  v.activation = read_activation(s, "hidden_act", "quick_gelu");
  check_heads(s, v, "embed_dim");
  return v;
}

}  // namespace

QwenVlConfig read_qwen2_vl_config(const Section& root) {
  return read_qwen_vl_config(root, read_vision(root.section("vision_config")), "hidden_size");
}

ModelConfig read_qwen2_vl(const Section& root) {
  return describe(read_qwen2_vl_config(root));
}

}  // namespace espalier
