// SPDX-License-Identifier: Apache-2.0
// Trains the vision tower alone, with linear heads that are thrown away: what the picture shows from the class token,
// and from every patch what covers it and where it is. Without the row and column heads a tower forgets places.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pictures/image_processor.h"
#include "synth/scene.h"
#include "training/trainer.h"

namespace espalier {

struct TowerTaskOptions {
  at::ScalarType dtype = at::kFloat;
  int64_t images = 64;                          // a batch; half with one object, half with one to four
  std::vector<synth::Difficulty> difficulties;  // taken in turns
  int64_t evaluation_images = 512;
};

// The heads' parameters, to be added before the stage begins.
void add_tower_heads(const LlavaConfig& config, Parameters& parameters, uint64_t seed);

std::unique_ptr<Task> tower_task(const LlavaConfig& config, const ImageProcessor& processor,
                                 const TowerTaskOptions& options, uint64_t seed);

// Pixel values of pictures, float32 [n, 3, s, s].
at::Tensor pixels_of(const ImageProcessor& processor, const std::vector<synth::Drawing>& drawings);

}  // namespace espalier
