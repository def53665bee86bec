// SPDX-License-Identifier: Apache-2.0
// What a picture becomes in each family: how many tokens, in which order, where each of them stands on the picture, and
// which rows of the vision tower's output they are. The only place that knows; packer, encoder and recorder follow it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "espalier/pruning.h"
#include "espalier/token_layout.h"
#include "runtime/loaded_model.h"

namespace espalier {

// How pixels are made of pictures, and what a crop of them is to the tower.
struct PictureProcessors {
  ImageProcessor image_processor;
  QwenImageProcessor qwen_image_processor;
  int64_t crop_grid = 0;  // patches along a side (LLaVA)
  bool has_tiles = true;  // false: of an any-resolution picture the full view alone
};

struct ImagePlan {
  ImageShape shape;
  // Patches and row breaks of the image alone, from token 0; image and example are the packer's to fill in.
  std::vector<Segment> segments;
  // What the tower takes, without a batch around it: [crops, 3, s, s], or Qwen2.5-VL's [patches, values].
  std::vector<int64_t> pixel_shape;
  // int64 [m]: for each patch in sequence order its row among the tower's rows, crops behind each other. Undefined: as
  // they come.
  at::Tensor tower_row;
  int64_t num_tower_rows = 0;
  std::shared_ptr<const PictureProcessors> processors;  // the model's, or those of a smaller picture

  int64_t num_tokens() const { return segments.empty() ? 0 : segments.back().end; }
};

// The picture in the shape that the policy wants, by default its own. Throws Error where it cannot be shown to the
// model.
ImagePlan plan_image(const LoadedModel& model, int width, int height, const PruningPolicy* policy = nullptr);

// The rows of all images' tower output, behind each other, in sequence order: int64 [m]; undefined: as they come.
at::Tensor tower_rows(std::span<const ImagePlan> plans);

// int64 [n], or [3, n] for M-RoPE, on the CPU; and the position of the first token behind the prompt.
struct PromptPositions {
  at::Tensor ids;
  int64_t next = 0;
};
PromptPositions prompt_positions(const ModelConfig& config, const PromptLayout& layout);

}  // namespace espalier
