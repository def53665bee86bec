// SPDX-License-Identifier: Apache-2.0
// What each patch of a crowded picture or a screen shows, as numbers: what the tower learns to tell, and what stands in
// for its features while the decoder learns the questions.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "synth/scene.h"

namespace espalier {

struct PatchLabel {
  static constexpr int64_t kNothing = -100;
  static constexpr int64_t kNumThings = 8;  // of synth::Cover::By

  int64_t thing = 0;  // synth::Cover::By
  // Of the object that the patch shows a part of, its mark included; a pointer's is the button under it.
  int64_t shape = kNothing, colour = kNothing, mark = kNothing;
};

std::vector<PatchLabel> patch_labels(const synth::Scene& scene, std::span<const synth::Cover> covers);

// float32 [patches, width]: thing, shape, colour, mark, row and column of each patch of a square grid, one of each set,
// in the first columns. Throws Error when `width` is too small.
at::Tensor label_features(std::span<const PatchLabel> labels, int64_t width);

}  // namespace espalier
