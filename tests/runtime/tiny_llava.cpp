// SPDX-License-Identifier: Apache-2.0
#include "tests/support/tiny_llava.h"

#include <cmath>
#include <map>

namespace espalier::test {

const LoadedModel& tiny_model(const std::string& checkpoint) {
  static std::map<std::string, LoadedModel> models;
  if (const auto found = models.find(checkpoint); found != models.end()) return found->second;
  const EngineOptions options{.dtype = ComputeDtype::kFloat32, .on_progress = {}};
  return models.emplace(checkpoint, load_model(golden_folder() / checkpoint, options)).first->second;
}

const LoadedModel& tiny_llava() {
  return tiny_model("llava15");
}

std::shared_ptr<const Image> picture(int width, int height, uint32_t seed) {
  Image image{width, height, {}};
  uint32_t state = seed * 2654435761u + 1;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) {
        state = state * 1664525u + 1013904223u;
        const double wave = std::sin(0.05 * (seed % 7 + 1) * x + c) + std::cos(0.07 * (seed % 5 + 1) * y - c);
        image.rgb.push_back(static_cast<uint8_t>(128 + 50 * wave + static_cast<double>(state >> 28)));
      }
  return std::make_shared<const Image>(std::move(image));
}

Chat in_context_prompt(int shots) {
  std::vector<Example> examples;
  for (int i = 0; i < shots; ++i)
    examples.push_back({.image = {.image = picture(60 + 9 * i, 70, 10 + i), .pins = {}},
                        .question = "What is the red cat doing?",
                        .answer = i % 2 ? "sitting" : "near the wall"});
  return in_context_chat(examples, {.image = picture(64, 64, 99), .pins = {}}, "What colour is the kite?");
}

}  // namespace espalier::test
