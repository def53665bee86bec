// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/topk_sorted/topk_sorted.h"

#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A full sort of each block.
std::vector<double> oracle(const at::Tensor& scores, const std::vector<int64_t>& begin,
                           const std::vector<int64_t>& num_kept) {
  const std::vector<double> s = to_doubles(scores);
  std::vector<double> out;
  for (size_t b = 0; b < num_kept.size(); ++b) {
    std::vector<int64_t> order(static_cast<size_t>(begin[b + 1] - begin[b]));
    std::iota(order.begin(), order.end(), begin[b]);
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
      return std::isnan(s[y]) ? !std::isnan(s[x]) : s[x] > s[y];  // false where x is NaN and y is not
    });
    order.resize(static_cast<size_t>(num_kept[b]));
    std::sort(order.begin(), order.end());
    out.insert(out.end(), order.begin(), order.end());
  }
  return out;
}

class TopkSortedTest : public DeviceTest {
 protected:
  static void expect_top(const at::Tensor& scores, const std::vector<int64_t>& begin,
                         const std::vector<int64_t>& num_kept) {
    const at::Tensor out = ops::topk_sorted(scores.to(device()), int64_tensor(begin), int64_tensor(num_kept));
    EXPECT_EQ(out.scalar_type(), at::kLong);
    EXPECT_EQ(out.device().type(), device().type());
    expect_close(out, oracle(scores, begin, num_kept), 0.0, std::to_string(begin.back()) + " scores");
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, TopkSortedTest, testing::ValuesIn(all_devices()), device_dtype_name);

TEST_P(TopkSortedTest, MatchesASort) {
  for (const int64_t m : {1, 2, 31, 32, 33, 576, 1024, 2880, 16384, 70000})
    for (const int64_t k : {int64_t{0}, int64_t{1}, m / 3, m - 1, m})
      expect_top(random_tensor({m}, at::kFloat, static_cast<uint64_t>(m)), {0, m}, {k});
}

TEST_P(TopkSortedTest, BlocksOfAllSizes) {
  expect_top(random_tensor({4000}, at::kFloat, 1), {0, 0, 1, 1000, 1000, 1003, 4000}, {0, 1, 17, 0, 3, 576});
  expect_top(random_tensor({50}, at::kFloat, 2), {10, 20, 40}, {4, 5});
  expect_top(random_tensor({50}, at::kFloat, 2), {0}, {});
  expect_top(random_tensor({0}, at::kFloat, 2), {0, 0}, {0});
  // More blocks than one launch takes.
  std::vector<int64_t> begin{0};
  std::vector<int64_t> num_kept;
  for (int64_t i = 0; i < 300; ++i) {
    num_kept.push_back(i % 5);
    begin.push_back(begin.back() + 4 + i % 7);
  }
  expect_top(random_tensor({begin.back()}, at::kFloat, 3), begin, num_kept);
}

TEST_P(TopkSortedTest, TiesGoToTheLowerIndex) {
  const at::Tensor scores = random_tensor({5000}, at::kFloat, 4).mul(2.0).round();
  for (const int64_t k : {1, 10, 700, 2500, 4999}) expect_top(scores, {0, 5000}, {k});
  expect_top(at::tensor({0.0F, -0.0F, 0.0F, -0.0F}), {0, 4}, {2});
  expect_top(at::tensor({-0.0F, 0.0F, -0.0F, 0.0F}), {0, 4}, {1});
}

TEST_P(TopkSortedTest, NanRanksLast) {
  const at::Tensor scores = at::tensor({NAN, -kInfinity, -1.0F, kInfinity, -NAN, 1e-40F, -1e-40F, NAN, 0.0F});
  for (int64_t k = 0; k <= 9; ++k) expect_top(scores, {0, 9}, {k});
}

TEST_P(TopkSortedTest, StridedScores) {
  expect_top(random_tensor({40, 3}, at::kFloat, 5).select(1, 1), {0, 15, 40}, {5, 6});
}

TEST_P(TopkSortedTest, WrongArgumentsThrow) {
  const at::Tensor scores = random({10});
  const auto top = [&](const at::Tensor& s, const std::vector<int64_t>& begin, const std::vector<int64_t>& kept) {
    return ops::topk_sorted(s, int64_tensor(begin), int64_tensor(kept));
  };
  EXPECT_THROW(top(scores, {0, 5}, {6}), c10::Error);
  EXPECT_THROW(top(scores, {0, 5}, {-1}), c10::Error);
  EXPECT_THROW(top(scores, {0, 11}, {1}), c10::Error);
  EXPECT_THROW(top(scores, {-1, 5}, {1}), c10::Error);
  EXPECT_THROW(top(scores, {0, 5, 3}, {1, 0}), c10::Error);
  EXPECT_THROW(top(scores, {0, 5}, {1, 1}), c10::Error);
  EXPECT_THROW(top(scores, {}, {}), c10::Error);
  EXPECT_THROW(top(scores.to(at::kHalf), {0, 5}, {1}), c10::Error);
  EXPECT_THROW(top(scores.view({2, 5}), {0, 5}, {1}), c10::Error);
  EXPECT_THROW(ops::topk_sorted(scores, int64_tensor({0, 5}).to(at::kInt), int64_tensor({1})), c10::Error);
}

}  // namespace
}  // namespace espalier::test
