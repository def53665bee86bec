// SPDX-License-Identifier: Apache-2.0
// The tiny checkpoints of tests/golden, their reference cases, and synthetic pictures.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "espalier/prompt.h"
#include "runtime/loaded_model.h"
#include "tests/support/folders.h"

namespace espalier::test {

inline std::filesystem::path tiny_llava_folder() {
  return golden_folder() / "llava15";
}

// A checkpoint of tests/golden, loaded once a process, float32: "llava15", "llava_next_mistral", …
const LoadedModel& tiny_model(const std::string& checkpoint);
const LoadedModel& tiny_llava();

// A smooth picture with some noise, the same for the same seed.
std::shared_ptr<const Image> picture(int width, int height, uint32_t seed);

// `shots` examples with an image, a question and an answer, and a query with its own image.
Chat in_context_prompt(int shots);

}  // namespace espalier::test
