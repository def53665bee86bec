// SPDX-License-Identifier: Apache-2.0
// A trained model as a LLaVA-1.5 folder that Espalier and Transformers load: its sizes, and its files written from
// trained parameters. Tokenizer and template come from synth.
#pragma once

#include <filesystem>

#include "families/llava/config.h"
#include "synth/llava_files.h"
#include "training/parameters.h"

namespace espalier {

// Everything but the weights: config.json, tokenizer, template, image settings, generation_config.json. Training opens
// the tokenizer and the image processor from the same files that users get.
void write_model_files(const std::filesystem::path& folder, const synth::LlavaSize& size = synth::kDemoSize);

// What config.json of such a folder says.
LlavaConfig model_config(const synth::LlavaSize& size);
LlavaConfig demo_model_config();

// model.safetensors in bfloat16, under the published names.
void write_model_weights(const std::filesystem::path& folder, const LlavaConfig& config, const Parameters& parameters);

}  // namespace espalier
