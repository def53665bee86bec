// SPDX-License-Identifier: Apache-2.0
// Means of groups of tokens, from the group that each token is in: how merging policies think of them, and how
// `merge_tokens` does not.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace espalier {

// Means of rows of x [n, d]: row index[j] is in group[j] (int64 both, on x's device); those of groups from num_groups
// up are left out. A group without rows gives 0. -> [num_groups, d] in x's dtype, summed in float32. Does not wait for
// the device.
at::Tensor group_means(const at::Tensor& x, const at::Tensor& index, const at::Tensor& group, int64_t num_groups);

// The same of all rows in order.
at::Tensor group_means(const at::Tensor& x, const at::Tensor& group, int64_t num_groups);

}  // namespace espalier
