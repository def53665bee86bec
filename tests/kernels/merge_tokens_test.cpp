// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/merge_tokens/merge_tokens.h"

#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"
#include "tests/support/dispatch.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& x, const std::vector<int64_t>& index, const std::vector<int64_t>& begin,
                           const std::vector<double>& weight = {}) {
  const std::vector<double> in = to_doubles(x);
  const int64_t d = x.size(1);
  std::vector<double> out;
  for (size_t group = 0; group + 1 < begin.size(); ++group) {
    std::vector<double> sum(static_cast<size_t>(d), 0.0);
    double total = 0.0;
    for (int64_t j = begin[group]; j < begin[group + 1]; ++j) {
      const double w = weight.empty() ? 1.0 : weight[j];
      total += w;
      for (int64_t i = 0; i < d; ++i) sum[i] += w * in[index[j] * d + i];
    }
    for (const double value : sum) out.push_back(total == 0.0 ? 0.0 : value / total);
  }
  return out;
}

class MergeTokensTest : public DeviceTest {
 protected:
  static at::Tensor on_device(const std::vector<int64_t>& values) { return int64_tensor(values).to(device()); }
  // Positive, so that no mean is near the sum of large terms that cancel.
  static at::Tensor weights(int64_t count) { return (random_tensor({count}, at::kFloat, 9).abs() + 0.25).to(device()); }
};
INSTANTIATE_TEST_SUITE_P(Devices, MergeTokensTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

// Groups of 0, 1, 2 and many rows; rows repeat within and between groups; indices before and behind belong to none.
const std::vector<int64_t> kIndex = {9, 0, 0, 5, 36, 1, 7, 7, 7, 2, 3, 4, 11, 12, 30, 31, 8};
const std::vector<int64_t> kBegin = {1, 1, 2, 4, 4, 15, 16};

TEST_P(MergeTokensTest, MatchesTheLoops) {
  for (const int64_t d : {1, 3, 8, 17, 256, 4096}) {
    const at::Tensor x = random({37, d}, 1), index = on_device(kIndex), begin = on_device(kBegin);
    const at::Tensor out = ops::merge_tokens(x, index, begin);
    EXPECT_EQ(out.sizes(), (std::vector<int64_t>{6, d}));
    EXPECT_EQ(out.scalar_type(), dtype());
    expect_close(out, oracle(x, kIndex, kBegin), tolerance(), "d " + std::to_string(d));
    const at::Tensor weight = weights(std::ssize(kIndex));
    expect_close(ops::merge_tokens(x, index, begin, weight), oracle(x, kIndex, kBegin, to_doubles(weight)), tolerance(),
                 "weighted, d " + std::to_string(d));
  }
}

TEST_P(MergeTokensTest, ManyGroups) {
  const int64_t k = 1500, n = 5000;
  std::vector<int64_t> index, begin = {0};
  for (int64_t group = 0; group < k; ++group) {
    for (int64_t i = 0; i < group % 7; ++i) index.push_back((group * 31 + i * 977) % n);
    begin.push_back(std::ssize(index));
  }
  const at::Tensor x = random({n, 65}, 2), weight = weights(std::ssize(index));
  expect_close(ops::merge_tokens(x, on_device(index), on_device(begin), weight),
               oracle(x, index, begin, to_doubles(weight)), tolerance());
}

TEST_P(MergeTokensTest, TakesAnyStrides) {
  const std::vector<int64_t> index = {4, 0, 3}, begin = {0, 2, 3};
  const at::Tensor index_strided = on_device({4, 9, 0, 9, 3, 9}).view({3, 2}).select(1, 0);
  const at::Tensor begin_strided = on_device({0, 9, 2, 9, 3, 9}).view({3, 2}).select(1, 0);
  const at::Tensor weight = weights(6).view({3, 2}).select(1, 1);
  for (const at::Tensor& x : {random({5, 40}, 2).slice(1, 3, 20), random({5, 40}, 3).slice(1, 0, 40, 3),
                              random({8, 5}, 4).t(), random({1, 16}, 5).expand({5, 16}), random({5, 0}, 6)})
    expect_close(ops::merge_tokens(x, index_strided, begin_strided, weight),
                 oracle(x, index, begin, to_doubles(weight)), tolerance());
}

TEST_P(MergeTokensTest, NothingMergesToNothing) {
  const at::Tensor x = random({4, 6}), none = on_device({});
  EXPECT_EQ(ops::merge_tokens(x, none, on_device({0})).sizes(), (std::vector<int64_t>{0, 6}));
  expect_close(ops::merge_tokens(x, none, on_device({0, 0, 0})), at::zeros({2, 6}), 0.0);
  expect_close(ops::merge_tokens(random({0, 6}), none, on_device({0, 0})), at::zeros({1, 6}), 0.0);
  // Weights that sum to 0 leave nothing to divide by.
  const at::Tensor weight = at::tensor({1.0F, -1.0F, 0.0F}).to(device());
  expect_close(ops::merge_tokens(x, on_device({0, 1, 2}), on_device({0, 2, 3}), weight), at::zeros({2, 6}), 0.0);
}

// One row alone is itself, bit for bit, and a run gives what the run before it gave.
TEST_P(MergeTokensTest, SingleRowsAndRepeatsAreExact) {
  const at::Tensor x = random({300, 70}, 7), index = on_device({299, 3, 3, 17}), begin = on_device({0, 1, 2, 3, 4});
  expect_same(ops::merge_tokens(x, index, begin), ops::gather_rows(x, index));
  const at::Tensor mixed = on_device({0, 4}), weight = weights(4);
  expect_same(ops::merge_tokens(x, index, mixed, weight), ops::merge_tokens(x, index, mixed, weight));
}

// The same sum in another order rounds differently, so the order must be that of `index`: 2^24 + 1 - 2^24 shows it.
TEST_P(MergeTokensTest, SumsInTheOrderOfTheIndex) {
  if (dtype() == at::kHalf) GTEST_SKIP() << "2^24 is no float16";
  const at::Tensor x = at::tensor({16777216.0F, 1.0F, -16777216.0F}).view({3, 1}).to(device(), dtype());
  expect_close(ops::merge_tokens(x, on_device({0, 1, 2}), on_device({0, 3})), std::vector<double>{0.0}, 0.0);
  expect_close(ops::merge_tokens(x, on_device({0, 2, 1}), on_device({0, 3})), std::vector<double>{1.0 / 3},
               tolerance());
}

TEST_P(MergeTokensTest, WrongArgumentsThrow) {
  const at::Tensor x = random({4, 3}), index = on_device({0, 1}), begin = on_device({0, 2});
  EXPECT_THROW(ops::merge_tokens(random({4}), index, begin), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x.to(at::kInt), index, begin), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index.to(at::kInt), begin), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index.unsqueeze(0), begin), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index, begin.to(at::kInt)), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index, on_device({})), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index, begin, weights(3)), c10::Error);
  EXPECT_THROW(ops::merge_tokens(x, index, begin, weights(2).to(at::kDouble)), c10::Error);
}

// A machine with AVX-512 runs the plain loops nowhere else.
TEST(MergeTokens, PlainLoopsMatch) {
  const auto dtypes = all_device_dtypes();
  for (const DeviceDtype& where : dtypes) {
    if (!where.device.is_cpu()) continue;
    for (const int64_t d : {1, 17, 64, 200}) {
      const at::Tensor x = random_tensor({37, d}, where.dtype, 5),
                       weight = random_tensor({17}, at::kFloat, 6).abs() + 0.25;
      const at::Tensor out = at::zeros({6, d}, x.options());
      const kernels::MergeGroups groups{kIndex.data(), kBegin.data(), weight.const_data_ptr<float>()};
      kernels::visit_element_type(x, "test", [&]<typename T>(T) {
        kernels::merge_tokens_plain(x.const_data_ptr<T>(), groups, out.mutable_data_ptr<T>(), {d, d}, 0, 6);
      });
      expect_close(out, oracle(x, kIndex, kBegin, to_doubles(weight)), where.tolerance);
    }
  }
}

TEST(MergeTokens, WhatDoesNotExistThrows) {
  const at::Tensor x = random_tensor({4, 3}), index = int64_tensor({0, 1});
  for (const int64_t row : {-1, 4, 1 << 30})
    EXPECT_THROW(ops::merge_tokens(x, int64_tensor({0, row}), int64_tensor({0, 2})), c10::Error);
  for (const auto& begin : std::vector<std::vector<int64_t>>{{-1, 2}, {0, 3}, {2, 0}, {0, 2, 1}})
    EXPECT_THROW(ops::merge_tokens(x, index, int64_tensor(begin)), c10::Error);
}

TEST(MergeTokens, GradientsMatchFiniteDifferences) {
  const at::Tensor index = int64_tensor({3, 2, 0, 2, 1}), begin = int64_tensor({1, 3, 3, 5});
  const auto f = [&](const std::vector<at::Tensor>& in) {
    return std::vector{ops::merge_tokens(in[0], index, begin, in[1])};
  };
  expect_gradients_match(f, {random_tensor({4, 3}, at::kDouble, 1), random_tensor({5}, at::kDouble, 2).abs() + 0.5});
}

TEST(MergeTokens, ComposedFormMatches) {
  const at::Tensor x = random_tensor({37, 6}, at::kFloat, 3), index = int64_tensor(kIndex),
                   begin = int64_tensor(kBegin);
  const at::Tensor traced = ops::merge_tokens(x.detach().requires_grad_(true), index, begin);
  EXPECT_TRUE(traced.requires_grad());
  expect_close(traced.detach(), ops::merge_tokens(x, index, begin), 1e-6);
}

TEST(MergeTokens, ByNameAndOnMeta) {
  const at::Tensor x = random_tensor({6, 8}), index = int64_tensor({5, 0, 1}), begin = int64_tensor({0, 2, 3});
  expect_same(call_op("merge_tokens", {x, index, begin, c10::IValue()}).at(0).toTensor(),
              ops::merge_tokens(x, index, begin));
  EXPECT_EQ(ops::merge_tokens(x.to(at::kMeta), index.to(at::kMeta), begin.to(at::kMeta)).sizes(),
            (std::vector<int64_t>{2, 8}));
}

}  // namespace
}  // namespace espalier::test
