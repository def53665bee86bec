// SPDX-License-Identifier: Apache-2.0
// The choice of a determinantal point process (ops::greedy_dpp) in each pool.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "espalier/ops.h"
#include "espalier/pruning.h"

namespace espalier {

// hidden [n, d]; columns int64 [m], the rows of it that image tokens are; relevance float32 [m]. Tokens that always
// stay are the first picks.
inline std::function<Choice(const Pools&)> determinantal_choice(const at::Tensor& hidden, const at::Tensor& columns,
                                                                const at::Tensor& relevance) {
  return [hidden, columns, relevance](const Pools& pools) {
    const at::Tensor picks = ops::greedy_dpp(ops::gather_rows(hidden, columns.index_select(0, pools.tokens)),
                                             relevance.index_select(0, pools.tokens), int64_tensor(pools.begin),
                                             int64_tensor(pools.num_kept), pools.always);
    return Choice{pools.tokens.index_select(0, picks)};
  };
}

}  // namespace espalier
