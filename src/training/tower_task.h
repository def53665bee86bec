// SPDX-License-Identifier: Apache-2.0
// Trains the vision tower alone, with linear heads that are thrown away: what the picture shows from the class token,
// and from every patch what covers it and where it is. Without the row and column heads a tower forgets places.
// On scenes with few objects, or on crowded ones and screens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/clip_tower.h"
#include "pictures/image_processor.h"
#include "synth/scene.h"
#include "training/trainer.h"

namespace espalier {

enum class TowerPictures : uint8_t {
  kFew,      // half with one object, half with one to four
  kCrowded,  // half with 2 to 16 objects, half screens
};

struct TowerTaskOptions {
  at::ScalarType dtype = at::kFloat;
  TowerPictures pictures = TowerPictures::kFew;
  int64_t images = 64;                          // a batch
  std::vector<synth::Difficulty> difficulties;  // taken in turns
  int64_t evaluation_images = 512;
};

// The heads' parameters, to be added before the stage begins.
void add_tower_heads(const LlavaConfig& config, TowerPictures pictures, Parameters& parameters, uint64_t seed);

std::unique_ptr<Task> tower_task(const LlavaConfig& config, const ImageProcessor& processor,
                                 const TowerTaskOptions& options, uint64_t seed);

// Picture `i`, seeded by `seed`: a crowd or, at odd numbers, one screen of a sequence.
synth::Scene crowded_picture(uint64_t seed, int64_t i, const synth::Difficulty& difficulty);

// Pixel values of pictures, float32 [n, 3, s, s].
at::Tensor pixels_of(const ImageProcessor& processor, const std::vector<synth::Drawing>& drawings);

// What the projector reads of them, patch by patch, all at once in the tower: [n * patches, d_v].
at::Tensor patch_features(const LlavaConfig& config, const ClipWeights& tower, const ImageProcessor& processor,
                          const std::vector<synth::Drawing>& drawings);

}  // namespace espalier
