// SPDX-License-Identifier: Apache-2.0
// What a packed sequence is made of: PromptLayout before anything was dropped, TokenLayout at one point of the model.
// Policies read both; only the runtime changes one (src/layout/cut.cpp).
//
// Four things are called "position" in this field. Here: `index` (place in the current sequence), `source_index` (place
// before any pruning), `position_id` (what RoPE sees), grid row and column (place in the crop).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "espalier/image.h"

namespace espalier {

struct GridSize {
  int64_t rows = 0;
  int64_t cols = 0;
  bool operator==(const GridSize&) const = default;
};

// A run of tokens of one kind, [begin, end) in the unpruned sequence. Segments follow each other without gaps.
struct Segment {
  enum class Kind : uint8_t { kText, kPatches, kRowBreak };
  Kind kind = Kind::kText;
  int64_t begin = 0;
  int64_t end = 0;
  int image = -1;    // ordinal of the image in the request; -1 for text
  int crop = -1;     // patches: 0 is the full view, 1, 2, … the tiles of an any-resolution image, row by row
  int example = -1;  // the in-context example it belongs to; -1: `<s>` and the system prompt
  // Patches: a rectangle of the crop, row by row. `origin` is the row and column of its first token in the crop.
  GridSize grid = {};
  GridSize origin = {};
};

// How many patches a picture has, and how they lie on it.
struct ImageShape {
  GridSize grid = {};                   // of one whole crop
  std::optional<GridSize> tiling = {};  // tiles of an any-resolution image
  // What each crop shows, in pixels of the original picture; a padded crop reaches over its edges. Empty in a layout
  // that was read from a file without them.
  std::vector<PixelBox> crop_boxes = {};
};

// The sequence as it would be without pruning. Immutable; shared by everything that happens to the request. Tensors are
// int64 on the model's device.
struct PromptLayout {
  int64_t num_tokens = 0;
  int query_example = 0;
  std::vector<ImageShape> images;
  std::vector<Segment> segments;

  // One row per token.
  at::Tensor position_id;  // [n], or [3, n] for M-RoPE (time, height, width)
  at::Tensor kind;         // [n] Segment::Kind
  at::Tensor image;        // [n] -1 for text
  at::Tensor crop;         // [n] -1 for text and row breaks
  at::Tensor example;      // [n]
  at::Tensor grid_row;     // [n] place within the crop, -1 where there is none
  at::Tensor grid_col;     // [n]
  at::Tensor pinned;       // bool [n]: tokens that no policy may drop

  // What competes: patches, with the row breaks if a policy lets them compete. From `segments`, without asking the
  // device.
  int64_t num_patches(int image) const;
  int64_t num_image_tokens(int image, bool with_row_breaks) const;
  int64_t num_image_tokens(bool with_row_breaks) const;  // of the request
  int example_of_image(int image) const;
  std::vector<int64_t> pinned_per_image;  // [images] how many of `pinned` are patches of it
  // Where a patch stands on its original picture. None for text and row breaks, and where crop boxes are not known.
  std::optional<PixelBox> pixel_box(int64_t source_index) const;
};

// One crop of a prompt, before any pruning.
struct CropFacts {
  int image = 0;
  int crop = 0;
  int64_t size = 0;  // patches that are there; what un-padding cut away is not
  int64_t pinned = 0;
  int64_t class_row = 0;  // of Tap::kVisionClass, which has rows of crops that un-padding cut away, too
};
// Images in order, crops of each in order.
std::vector<CropFacts> crops_of(const PromptLayout& prompt);

// The tokens that are there now. All tensors int64 on the model's device, one entry a token unless said otherwise.
struct TokenLayout {
  std::shared_ptr<const PromptLayout> prompt;
  at::Tensor source_index;  // [n] index in the unpruned sequence; -1 for a new token without a place of its own
  at::Tensor position_id;   // [n] or [3, n]
  at::Tensor kind;          // [n] Segment::Kind; new tokens count as patches
  at::Tensor image;         // [n]
  at::Tensor crop;          // [n]
  at::Tensor example;       // [n]
  at::Tensor pinned;        // bool [n]
  at::Tensor image_tokens;  // [m] indices of the tokens that may be dropped, ascending: the columns of every signal

  bool row_breaks_compete = false;  // whether image_tokens has row breaks beside patches
  bool is_whole = false;            // nothing has left of the tokens from `begin` on, and nothing entered
  int64_t begin = 0;                // source index of the first token that this is about: above 0 after a cached prefix
  // [images] image tokens of each; empty where the host does not know (tokens_per_image() then asks the device).
  std::vector<int64_t> known_per_image = {};

  int64_t num_tokens() const { return source_index.size(0); }
  int64_t num_image_tokens() const { return image_tokens.size(0); }
  std::vector<int64_t> tokens_per_image() const;
};

}  // namespace espalier
