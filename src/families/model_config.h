// SPDX-License-Identifier: Apache-2.0
// A model as its config.json describes it: data that every family has, and how the family goes on from there.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "families/vision_front_end.h"
#include "model/config.h"
#include "model/layers.h"
#include "model/vision.h"

namespace espalier {

struct ModelConfig {
  std::string_view family;  // as people say it
  DecoderConfig decoder;
  VisionFacts vision;
  int32_t image_token_id = 0;
  std::string dtype = "float32";  // of the stored weights, as the file says

  // Asks `source` for every tensor in front of the decoder.
  std::function<void(const WeightSource& source)> bind_front_end;
  // Reads the preprocessor's settings from the folder and binds the weights. Throws Error for what is missing or does
  // not go with config.json.
  std::function<VisionFrontEnd(const std::filesystem::path& folder, const WeightSource& source)> load_front_end;
};

}  // namespace espalier
