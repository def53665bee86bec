// SPDX-License-Identifier: Apache-2.0
#include "pruning/crop_pools.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "espalier/error.h"
#include "pruning/selection.h"

namespace espalier {

std::vector<CropPool> crop_pools(const PromptLayout& prompt) {
  std::map<std::pair<int, int>, CropPool> pools;
  for (const Segment& s : prompt.segments) {
    if (s.kind != Segment::Kind::kPatches) continue;
    CropPool& pool = pools[{s.image, s.crop}];
    pool.image = s.image;
    pool.crop = s.crop;
    pool.size += s.end - s.begin;
  }
  if (std::ranges::any_of(prompt.pinned_per_image, [](int64_t n) { return n > 0; })) {
    const at::Tensor pinned = prompt.pinned.cpu().contiguous();  // a request with pins waits for the device once
    for (const Segment& s : prompt.segments)
      for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t)
        pools[{s.image, s.crop}].pinned += pinned.const_data_ptr<bool>()[t] ? 1 : 0;
  }
  std::vector<int64_t> first_row = {0};  // of each image
  for (const ImageShape& image : prompt.images)
    first_row.push_back(first_row.back() + 1 + (image.tiling ? image.tiling->rows * image.tiling->cols : 0));
  std::vector<CropPool> in_order;
  for (auto& [place, pool] : pools) {
    pool.class_row = first_row[pool.image] + pool.crop;
    in_order.push_back(pool);
  }
  return in_order;
}

std::vector<int64_t> kept_per_crop(const CropRule& rule, const std::vector<CropPool>& pools) {
  std::vector<int64_t> kept;
  for (const CropPool& pool : pools) {
    kept.push_back(kept_of(rule.amount, pool.size, Rounding::kNearestEven));
    if (kept.back() < pool.pinned)
      throw Error(std::string(rule.policy) + ": the amount keeps " + std::to_string(kept.back()) +
                  " tokens of a pool in which " + std::to_string(pool.pinned) + " are pinned");
  }
  raise_to_floor(kept, pools, rule.min_per_image);
  return kept;
}

void raise_to_floor(std::vector<int64_t>& kept, const std::vector<CropPool>& pools, int64_t min_per_image) {
  for (size_t first = 0, last = 0; first < pools.size(); first = last) {
    int64_t missing = min_per_image;
    for (; last < pools.size() && pools[last].image == pools[first].image; ++last) missing -= kept[last];
    for (size_t i = first; i < last && missing > 0; ++i) {
      const int64_t more = std::min(missing, std::max<int64_t>(0, pools[i].size - kept[i]));
      kept[i] += more;
      missing -= more;
    }
  }
}

std::vector<int64_t> sum_per_image(const std::vector<int64_t>& of_crops, const std::vector<CropPool>& pools,
                                   size_t num_images) {
  std::vector<int64_t> sums(num_images, 0);
  for (size_t i = 0; i < pools.size(); ++i) sums[pools[i].image] += of_crops[i];
  return sums;
}

std::vector<CropTokens> crop_tokens(const TokenLayout& layout, const std::vector<CropPool>& pools,
                                    bool row_breaks_compete) {
  std::map<std::pair<int64_t, int64_t>, size_t> place;
  for (size_t i = 0; i < pools.size(); ++i) place[{pools[i].image, pools[i].crop}] = i;
  std::vector<CropTokens> crops(pools.size());
  int64_t ordinal = 0, patch = 0;
  const auto add = [&](int64_t image, int64_t crop) {
    CropTokens& tokens = crops[place.at({image, crop})];
    tokens.ordinals.push_back(ordinal++);
    tokens.patches.push_back(patch++);
  };
  if (layout.image.is_same(layout.prompt->image)) {
    for (const Segment& s : layout.prompt->segments) {
      if (s.kind == Segment::Kind::kRowBreak && row_breaks_compete) ++ordinal;
      for (int64_t t = s.begin; s.kind == Segment::Kind::kPatches && t < s.end; ++t) add(s.image, s.crop);
    }
    return crops;
  }
  const auto of_tokens = [&](const at::Tensor& fact) { return fact.index_select(0, layout.image_tokens).cpu(); };
  const at::Tensor image = of_tokens(layout.image), crop = of_tokens(layout.crop), kind = of_tokens(layout.kind);
  for (int64_t i = 0; i < layout.num_image_tokens(); ++i) {
    if (kind.const_data_ptr<int64_t>()[i] == static_cast<int64_t>(Segment::Kind::kPatches))
      add(image.const_data_ptr<int64_t>()[i], crop.const_data_ptr<int64_t>()[i]);
    else
      ++ordinal;
  }
  return crops;
}

at::Tensor joined(const std::vector<CropTokens>& crops, std::vector<int64_t> CropTokens::*which,
                  const TokenLayout& layout) {
  std::vector<int64_t> all;
  for (const CropTokens& crop : crops) all.insert(all.end(), (crop.*which).begin(), (crop.*which).end());
  return int64_tensor(all).to(layout.image_tokens.device());
}

}  // namespace espalier
