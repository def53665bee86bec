// SPDX-License-Identifier: Apache-2.0
// A LLaVA-1.5 checkpoint folder of a chosen size, as published ones are laid out, that reads the demo tokenizer: its
// files as text, and the names of its weights. Not here: the weights.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "synth/demo_tokenizer.h"

namespace espalier::synth {

struct LlavaSize {
  int64_t hidden = 128, intermediate = 352;
  int layers = 8, heads = 4;
  int64_t vision_hidden = 128, vision_intermediate = 512;
  int vision_layers = 5, vision_heads = 4;
  int64_t image = 56, patch = 7;  // pixels along a side
  int64_t vocab = 0;  // rows of the embedding, a multiple of 32, each a token with a text; 0: as the words need
  int64_t max_positions = 4096;
  Words words = Words::kDemo;
};
inline constexpr LlavaSize kDemoSize = {};  // of models/demo
// Of the model for crowded scenes and screens: a grid of 12 x 12 patches, and more of everything that reads it.
inline constexpr LlavaSize kCrowdedSize = {.hidden = 160,
                                           .intermediate = 448,
                                           .layers = 8,
                                           .heads = 5,
                                           .vision_hidden = 160,
                                           .vision_intermediate = 640,
                                           .vision_layers = 6,
                                           .vision_heads = 5,
                                           .image = 84,
                                           .patch = 7,
                                           .words = Words::kCrowded};

// config.json, tokenizer, template, image settings, generation_config.json. `dtype` as torch names it: "bfloat16".
std::vector<FolderFile> llava_files(const LlavaSize& size, const std::string& dtype);
std::string llava_config(const LlavaSize& size, const std::string& dtype);  // config.json alone

// What a file calls the weight that the library calls decoder.…, vision.…, projector.… or lm_head.….
std::string published_name(const std::string& canonical);

}  // namespace espalier::synth
