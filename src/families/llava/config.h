// SPDX-License-Identifier: Apache-2.0
// config.json of LLaVA-1.5, the part that LLaVA-NeXT has too. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/clip_tower.h"
#include "model/config.h"
#include "model/vision.h"

namespace espalier {

class Section;

struct LlavaConfig {
  ClipConfig vision = {};
  DecoderConfig decoder = {};
  Activation projector_activation = Activation::kGelu;
  bool projector_bias = true;
  std::vector<int> vision_feature_layers = {-2};  // as written: -2 is the output of the last layer but one
  bool keeps_class_token = false;                 // vision_feature_select_strategy "full"
  int32_t image_token_id = 32000;
  std::string dtype = "float32";

  // vision_feature_layers as hidden states: 0 is the input of layer 0, i the output of layer i - 1.
  std::vector<int> feature_states() const;
  int last_vision_layer() const;  // layers that have to run for the features
  int64_t feature_size() const;   // of what the projector reads
  VisionFacts facts() const;
};

// Throws Error on a value out of range or a key of the wrong type.
LlavaConfig read_llava_config(const Section& root);

}  // namespace espalier
