// SPDX-License-Identifier: Apache-2.0
#include "pruning/group_means.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::random_tensor;
using test::to_doubles;

TEST(GroupMeans, AreThoseOfPlainLoops) {
  const at::Tensor x = random_tensor({12, 5}, at::kFloat, 1);
  const std::vector<int64_t> index = {3, 0, 11, 7, 3, 2, 9}, group = {2, 0, 2, 5, 2, 0, 3};
  const int64_t num_groups = 4;  // group 1 has no rows, group 5 is left out
  std::vector<double> sum(static_cast<size_t>(num_groups * 5)), count(static_cast<size_t>(num_groups));
  for (size_t j = 0; j < index.size(); ++j) {
    if (group[j] >= num_groups) continue;
    count[group[j]] += 1;
    for (int64_t c = 0; c < 5; ++c) sum[group[j] * 5 + c] += to_doubles(x)[index[j] * 5 + c];
  }
  for (size_t i = 0; i < sum.size(); ++i) sum[i] = count[i / 5] > 0 ? sum[i] / count[i / 5] : 0;
  test::expect_close(group_means(x, int64_tensor(index), int64_tensor(group), num_groups), sum, 1e-6);
}

TEST(GroupMeans, OfAllRowsAndOfNone) {
  const at::Tensor x = random_tensor({4, 3}, at::kBFloat16, 2);
  const at::Tensor means = group_means(x, int64_tensor({1, 0, 2, 3}), 4);
  EXPECT_EQ(means.scalar_type(), at::kBFloat16);
  test::expect_same(means, x.index_select(0, int64_tensor({1, 0, 2, 3})));
  EXPECT_EQ(group_means(x.slice(0, 0, 0), int64_tensor({}), 2).sizes(), (std::vector<int64_t>{2, 3}));
}

}  // namespace
}  // namespace espalier
