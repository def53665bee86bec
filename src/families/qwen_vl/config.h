// SPDX-License-Identifier: Apache-2.0
// config.json of Qwen2-VL and Qwen2.5-VL: what both say, over a vision_config that each writes its own way. Plain data.
#pragma once

#include <cstdint>
#include <string>

#include "model/config.h"
#include "model/patch_vit.h"
#include "model/vision.h"

namespace espalier {

class Section;

struct QwenVlConfig {
  PatchVitConfig vision = {};
  DecoderConfig decoder = {};
  int32_t image_token_id = 151655;
  std::string dtype = "float32";

  VisionFacts facts() const;
};

// The whole of config.json but vision_config, whose key `projector_width` is what the merger's MLP gives to the
// decoder. Throws Error on a value out of range or a key of the wrong type.
QwenVlConfig read_qwen_vl_config(const Section& root, const PatchVitConfig& vision, const char* projector_width);

// Of vision_config: the keys that both families have, and whether heads go with rotary rows and columns (`width`: the
// key of hidden_size).
void read_patch_sizes(const Section& vision, PatchVitConfig& config);
void check_heads(const Section& vision, const PatchVitConfig& config, const char* width);

}  // namespace espalier
