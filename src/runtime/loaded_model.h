// SPDX-License-Identifier: Apache-2.0
// A checkpoint folder opened and bound: everything that is const for the life of an Engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>

#include "base/log.h"
#include "espalier/engine.h"
#include "espalier/pruning.h"
#include "families/model_config.h"
#include "families/vision_front_end.h"
#include "model/generation_config.h"
#include "model/weights.h"
#include "runtime/known_costs.h"
#include "text/chat_template.h"

namespace espalier {

// What the runtime computes with by name; the tensors in front of the decoder are the front end's own.
struct ModelWeights {
  DecoderWeights decoder;  // mapped from the file where dtype and device allow
};

struct LoadedModel {
  std::filesystem::path folder;
  ModelConfig config;
  VisionFrontEnd front_end;
  ModelWeights weights;
  ModelFacts facts;
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat_template;  // raw prompts work without one
  GenerationConfig generation;
  at::ScalarType dtype;
  at::Device device;
  KnownCosts costs;
  Log log;
};

LoadedModel load_model(const std::filesystem::path& folder, const EngineOptions& options);

// f32, bf16 or f16, as --dtype takes it.
std::string_view dtype_option(at::ScalarType dtype);

// Of a folder whose config.json has been read.
ModelFacts facts_of(const ModelConfig& config, const std::filesystem::path& folder);

}  // namespace espalier
