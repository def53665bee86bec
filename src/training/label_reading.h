// SPDX-License-Identifier: Apache-2.0
// Where the decoder learned from labels and is to go on with a tower: what the projector must do first so that the
// decoder is told nearly the same.
#pragma once

#include <cstdint>

#include "families/llava/config.h"
#include "pictures/image_processor.h"
#include "training/parameters.h"

namespace espalier {

// `parameters` holds a projector that reads labels (patch_labels.h) and a trained tower. The projector's first layer is
// put after the affine map that tells the labels from the tower's features with the least squared error, fitted on
// pictures of the training split.
void read_labels_from_tower(const LlavaConfig& config, const ImageProcessor& processor, Parameters& parameters,
                            uint64_t seed);

}  // namespace espalier
