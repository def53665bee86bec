// SPDX-License-Identifier: Apache-2.0
// What ATP's training adds to the loss of the answers (docs/specs/atp_llava.md, section 5), on counts of image tokens
// alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "training/masked_pass.h"

namespace espalier {

// Image tokens of p pictures: at entry, and behind each of k modules (soft counts carry gradients).
struct AtpCounts {
  at::Tensor sizes;         // [p]
  at::Tensor left;          // [p, k]
  std::vector<int> layers;  // [k] 0-based layer before which each module stands: as many layers ran before it
};

// Of all pictures of these sequences, from the products of the masks.
AtpCounts soft_counts(std::span<const MaskedSequence> sequences, std::span<const MaskTrace> traces);

// Mean over all layers of the tokens that enter each, [p].
at::Tensor mean_tokens(const AtpCounts& counts, int num_layers);

// L_atp: sum over modules of the share of tokens left times the module's layer (1-based, "after layer l"), mean over
// pictures.
at::Tensor depth_loss(const AtpCounts& counts);

// L_target: how far the mean over layers and pictures is from `target_ratio` of the tokens at entry; in tokens of a
// picture, or `is_normalised` as a share of its tokens.
at::Tensor target_loss(const AtpCounts& counts, int num_layers, double target_ratio, bool is_normalised = false);

}  // namespace espalier
