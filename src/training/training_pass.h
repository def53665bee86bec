// SPDX-License-Identifier: Apache-2.0
// The decoder over packed training sequences: run_layers() with a gradient, scored rows only at the end. No cache, no
// policy; what a sequence means is not known here.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "families/llava/config.h"
#include "training/parameters.h"

namespace espalier {

// b sequences behind each other, n tokens, m of them image tokens, r scored rows.
struct TrainingBatch {
  at::Tensor ids;          // int64 [n]; at image rows any id
  at::Tensor position_id;  // int64 [n]
  at::Tensor begin;        // int64 [b + 1]
  at::Tensor image_rows;   // int64 [m], ascending, or undefined
  at::Tensor features;     // [m, d_v]: what the projector reads
  at::Tensor scored_rows;  // int64 [r]: the next token of these rows is scored
  at::Tensor targets;      // int64 [r]
  at::Tensor weights;      // float32 [r]: of each row in the loss
  std::vector<int> topic;  // [r]: what the row asks for, for accuracies of their own; -1: not counted
};

struct TrainingPassOptions {
  int share_layers = 0;         // layers 0 … share_layers - 1 give their share
  int drop_images_before = -1;  // a layer: image tokens leave the stream there, as policies take them away
};

struct TrainingPass {
  at::Tensor logits;       // [r, vocab]
  at::Tensor image_share;  // float32 []: attention that rows behind a picture give to image tokens, mean over those
                           // rows, heads and share_layers; undefined without share_layers or images
};

TrainingPass run_decoder(const LlavaConfig& config, const LlavaWeights& weights, const TrainingBatch& batch,
                         const TrainingPassOptions& options = {});

}  // namespace espalier
