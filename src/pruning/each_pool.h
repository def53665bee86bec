// SPDX-License-Identifier: Apache-2.0
// Methods that are written for one picture, one pool after another.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <vector>

#include "espalier/pruning.h"

namespace espalier {

struct Pool {
  size_t number;
  at::Tensor own;     // int64 [n] ordinals of image_tokens
  at::Tensor always;  // bool [n]: these must be among what stays
  int64_t num_kept;   // at least 1
};

// What stays of each pool is what `kept(pool)` says: int64 [num_kept], ordinals of `own`. A pool that keeps nothing is
// not asked.
template <typename Kept>
Choice choose_in_each(const Pools& pools, const Kept& kept) {
  std::vector<at::Tensor> all = {pools.tokens.slice(0, 0, 0)};
  for (size_t i = 0; i + 1 < pools.begin.size(); ++i) {
    if (pools.num_kept[i] == 0) continue;
    const auto own = [&](const at::Tensor& t) { return t.slice(0, pools.begin[i], pools.begin[i + 1]); };
    all.push_back(kept(Pool{i, own(pools.tokens), own(pools.always), pools.num_kept[i]}));
  }
  return {at::cat(all)};
}

}  // namespace espalier
