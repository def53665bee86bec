// SPDX-License-Identifier: Apache-2.0
// The tiny LLaVA-1.5 checkpoint of tests/golden, its reference cases, and synthetic pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "espalier/prompt.h"
#include "runtime/loaded_model.h"

namespace espalier::test {

inline std::filesystem::path golden_folder() {
  return ESPALIER_TEST_DATA;
}
inline std::filesystem::path tiny_llava_folder() {
  return golden_folder() / "llava15";
}

// Loaded once a process, float32.
const LoadedModel& tiny_llava();

// A smooth picture with some noise, the same for the same seed.
std::shared_ptr<const Image> picture(int width, int height, uint32_t seed);

// `shots` examples with an image, a question and an answer, and a query with its own image.
Chat in_context_prompt(int shots);

}  // namespace espalier::test
