// SPDX-License-Identifier: Apache-2.0
// What a picture becomes: how many tokens, in which order, where each of them stands on the picture, and which rows of
// the vision tower's output they are. Each family plans its own way; packer, encoder and recorder follow the plan.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "espalier/token_layout.h"

namespace espalier {

struct ImagePlan {
  ImageShape shape;
  // Patches and row breaks of the image alone, from token 0; image and example are the packer's to fill in.
  std::vector<Segment> segments;
  // What the tower takes, without a batch around it: [crops, 3, s, s], or [patches, values].
  std::vector<int64_t> pixel_shape;
  // int64 [m]: for each patch in sequence order its row among the tower's rows, crops behind each other. Undefined: as
  // they come.
  at::Tensor tower_row;
  int64_t num_tower_rows = 0;

  int64_t num_tokens() const { return segments.empty() ? 0 : segments.back().end; }

  // For the families, in the order of the tokens: a rectangle of a crop, row by row (nothing when it is empty) …
  void add_patches(int crop, GridSize grid, GridSize origin = {});
  void add_row_break();
  // … and at the end, where the tower's rows are those of `crops` whole crops of shape.grid, row by row.
  void set_tower_rows(int64_t crops);
};

// The rows of the images' tower output, behind each other, in sequence order: int64 [m]; undefined: as they come.
at::Tensor tower_rows(std::span<const ImagePlan> plans);

}  // namespace espalier
