// SPDX-License-Identifier: Apache-2.0
#include "pruning/group_means.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/searchsorted.h>

#include "espalier/ops.h"

namespace espalier {

at::Tensor group_means(const at::Tensor& x, const at::Tensor& index, const at::Tensor& group, int64_t num_groups) {
  const at::Tensor order = group.argsort(/*stable=*/true, 0, /*descending=*/false);
  const at::Tensor begin = at::searchsorted(group.index_select(0, order), at::arange(num_groups + 1, group.options()));
  return ops::merge_tokens(x, index.index_select(0, order), begin);
}

at::Tensor group_means(const at::Tensor& x, const at::Tensor& group, int64_t num_groups) {
  return group_means(x, at::arange(x.size(0), group.options()), group, num_groups);
}

}  // namespace espalier
