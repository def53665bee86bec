// SPDX-License-Identifier: Apache-2.0
// Crops as pools of their own, for policies that treat the full view and each tile apart. Tiles of an any-resolution
// image interleave row by row in the sequence, so their tokens are gathered first. Numbers and places are the host's.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "espalier/policies/amount.h"
#include "espalier/token_layout.h"

namespace espalier {

// What is present of one crop before any pruning. Images in order, crops of each in order.
struct CropPool {
  int image = 0;
  int crop = 0;
  int64_t size = 0;
  int64_t pinned = 0;
  int64_t class_row = 0;  // of Tap::kVisionClass, which has rows of crops that un-padding cut away, too
};
std::vector<CropPool> crop_pools(const PromptLayout& prompt);

// What an amount of each crop comes to. An image that would keep fewer than min_per_image keeps more of its first
// crops. Throws Error when fewer are kept than are pinned.
struct CropRule {
  std::string_view policy;  // for messages
  Amount amount;
  int64_t min_per_image = 0;
};
std::vector<int64_t> kept_per_crop(const CropRule& rule, const std::vector<CropPool>& pools);

// Raises `kept` until each image has `min_per_image` (or all its tokens).
void raise_to_floor(std::vector<int64_t>& kept, const std::vector<CropPool>& pools, int64_t min_per_image);

std::vector<int64_t> sum_per_image(const std::vector<int64_t>& of_crops, const std::vector<CropPool>& pools,
                                   size_t num_images);

// The patches of each crop that are there now, ascending.
struct CropTokens {
  std::vector<int64_t> ordinals;  // into TokenLayout::image_tokens
  std::vector<int64_t> patches;   // the same counted among the patches alone, as the vision tower's signals do
};
// One entry a pool. A sequence from which something has left is read from the device, which waits for it.
std::vector<CropTokens> crop_tokens(const TokenLayout& layout, const std::vector<CropPool>& pools,
                                    bool row_breaks_compete);

// Ordinals (or patches) of all crops behind each other, int64 on the layout's device.
at::Tensor joined(const std::vector<CropTokens>& crops, std::vector<int64_t> CropTokens::*which,
                  const TokenLayout& layout);

}  // namespace espalier
