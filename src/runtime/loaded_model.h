// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder opened and bound: everything that is const for the life of an Engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>

#include "espalier/engine.h"
#include "espalier/pruning.h"
#include "model/config.h"
#include "model/generation_config.h"
#include "model/weights.h"
#include "pictures/image_processor.h"
#include "pictures/qwen_image_processor.h"
#include "text/chat_template.h"

namespace espalier {

struct LoadedModel {
  std::filesystem::path folder;
  ModelConfig config;
  ModelWeights weights;  // mapped from the file where dtype and device allow
  ModelFacts facts;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;  // raw prompts work without one
  ImageProcessor image_processor;             // of LLaVA's families,
  QwenImageProcessor qwen_image_processor;    // or Qwen2.5-VL's; the other is not read
  GenerationConfig generation;
  at::ScalarType dtype;
  at::Device device;
};

LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options);

ModelFacts facts_of(const ModelConfig& config);

}  // namespace espalier
