// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/pairwise_cosine/pairwise_cosine.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"
#include "tests/support/dispatch.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& x, const at::Tensor& y) {
  const std::vector<double> a = to_doubles(x), b = to_doubles(y);
  const int64_t d = x.size(1);
  std::vector<double> out;
  for (int64_t i = 0; i < x.size(0); ++i) {
    for (int64_t j = 0; j < y.size(0); ++j) {
      double dot = 0.0, aa = 0.0, bb = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        dot += a[i * d + k] * b[j * d + k];
        aa += a[i * d + k] * a[i * d + k];
        bb += b[j * d + k] * b[j * d + k];
      }
      out.push_back(std::sqrt(aa) < 1e-12 || std::sqrt(bb) < 1e-12 ? 0.0 : dot / std::sqrt(aa) / std::sqrt(bb));
    }
  }
  return out;
}

// Float32 accumulation everywhere; only the order of the sums differs.
constexpr double kTolerance = 4e-6;

class PairwiseCosineTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, PairwiseCosineTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(PairwiseCosineTest, MatchesTheLoops) {
  for (const auto& [n, m, d] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{{1, 1, 1},
                                                                                  {3, 2, 7},
                                                                                  {64, 48, 64},
                                                                                  {65, 49, 33},
                                                                                  {1, 200, 100},
                                                                                  {200, 1, 100},
                                                                                  {130, 97, 1280},
                                                                                  {5, 7, 4096}}) {
    const at::Tensor x = random({n, d}, 1), y = random({m, d}, 2);
    const at::Tensor out = ops::pairwise_cosine(x, y);
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    EXPECT_EQ(out.device().type(), device().type());
    EXPECT_TRUE(out.is_contiguous());
    expect_close(out, oracle(x, y), kTolerance,
                 "n, m, d " + std::to_string(n) + ", " + std::to_string(m) + ", " + std::to_string(d));
  }
}

TEST_P(PairwiseCosineTest, EmptyInputs) {
  EXPECT_EQ(ops::pairwise_cosine(random({0, 8}), random({3, 8})).sizes(), (std::vector<int64_t>{0, 3}));
  EXPECT_EQ(ops::pairwise_cosine(random({3, 8}), random({0, 8})).sizes(), (std::vector<int64_t>{3, 0}));
  expect_close(ops::pairwise_cosine(random({3, 0}), random({2, 0})), at::zeros({3, 2}), 0.0);
}

TEST_P(PairwiseCosineTest, TakesAnyStrides) {
  const at::Tensor wide = random({60, 70}, 3), y = random({20, 35}, 4);
  for (const at::Tensor& x : {wide.slice(1, 1, 36), wide.slice(1, 0, 70, 2), wide.slice(0, 0, 60, 7).slice(1, 35, 70),
                              random({35, 11}, 5).t(), random({1, 35}, 6).expand({9, 35})}) {
    expect_close(ops::pairwise_cosine(x, y), oracle(x, y), kTolerance);
    expect_close(ops::pairwise_cosine(y, x), oracle(y, x), kTolerance);
  }
}

// What policies rely on: 0 and not NaN for a row without a direction; scale does not count; never beyond 1.
TEST_P(PairwiseCosineTest, ShortRowsAndScale) {
  const at::Tensor x = random({50, 20}, 7);
  const at::Tensor rows = at::cat({x, x * 0.0, x * 16.0, x * (1.0 / 64)});
  const at::Tensor out = ops::pairwise_cosine(rows, x).view({4, 50, 50});
  expect_close(out[1], at::zeros({50, 50}), 0.0);
  expect_close(out[2], out[0], 1e-6);
  expect_close(out[3], out[0], 1e-6);
  EXPECT_LE(out.max().item<float>(), 1.0F);
  expect_close(out[0].diagonal(), at::full({50}, 1.0F), 1e-6);
  expect_close(ops::pairwise_cosine(x, x * 0.0), at::zeros({50, 50}), 0.0);
}

TEST_P(PairwiseCosineTest, EqualRowsTie) {
  const at::Tensor x = random({70, 129}, 8), y = random({53, 129}, 9);
  const at::Tensor twice = ops::pairwise_cosine(x, at::cat({y, y}));
  expect_same(twice.slice(1, 0, 53), twice.slice(1, 53, 106));
}

TEST_P(PairwiseCosineTest, ManyRowsMatchCosineScore) {
  const at::Tensor x = random({2000, 64}, 10), y = random({700, 64}, 11);
  expect_close(ops::pairwise_cosine(x, y).t(), ops::cosine_score(x, y), kTolerance);
}

TEST_P(PairwiseCosineTest, WrongArgumentsThrow) {
  const at::Tensor x = random({5, 4});
  EXPECT_THROW(ops::pairwise_cosine(x, random({5, 3})), c10::Error);
  EXPECT_THROW(ops::pairwise_cosine(x, random({4})), c10::Error);
  EXPECT_THROW(ops::pairwise_cosine(x, random({2, 4}).to(at::kInt)), c10::Error);
  EXPECT_THROW(ops::pairwise_cosine(x.to(at::kInt), x.to(at::kInt)), c10::Error);
}

TEST(PairwiseCosineLevels, AgreeWithThePlainLoops) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t d : {1, 17, 64, 513}) {
      const at::Tensor x = random_tensor({67, d}, dtype, 1), y = random_tensor({50, d}, dtype, 2);
      const auto type = kernels::element_type(x, "test");
      const kernels::Rows rows{{x.const_data_ptr(), d, d, type}, 67}, others{{y.const_data_ptr(), d, d, type}, 50};
      const at::Tensor expected = at::empty({67, 50}), got = at::empty({67, 50});
      kernels::pairwise_cosine_plain(rows, others, expected.mutable_data_ptr<float>());
      expect_close(expected, oracle(x, y), kTolerance);
      for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
        kernels::pairwise_cosine_panels(rows, others, level, got.mutable_data_ptr<float>());
        expect_close(got, expected, kTolerance, "d " + std::to_string(d));
      }
    }
  }
}

TEST(PairwiseCosine, GradientsMatchFiniteDifferences) {
  const auto f = [](const std::vector<at::Tensor>& in) { return std::vector{ops::pairwise_cosine(in[0], in[1])}; };
  expect_gradients_match(f, {random_tensor({4, 5}, at::kDouble, 1), random_tensor({3, 5}, at::kDouble, 2)});
}

// The form that gradients run through is the same function.
TEST(PairwiseCosine, ComposedFormMatches) {
  const at::Tensor x = at::cat({random_tensor({6, 9}, at::kFloat, 3), at::zeros({1, 9})}),
                   y = random_tensor({4, 9}, at::kFloat, 4);
  const at::Tensor traced = ops::pairwise_cosine(x.detach().requires_grad_(true), y);
  EXPECT_TRUE(traced.requires_grad());
  expect_close(traced.detach(), ops::pairwise_cosine(x, y), 1e-6);
}

TEST(PairwiseCosine, ByNameAndOnMeta) {
  const at::Tensor x = random_tensor({6, 8}), y = random_tensor({3, 8});
  expect_same(call_op("pairwise_cosine", {x, y}).at(0).toTensor(), ops::pairwise_cosine(x, y));
  EXPECT_EQ(ops::pairwise_cosine(x.to(at::kMeta), y.to(at::kMeta)).sizes(), (std::vector<int64_t>{6, 3}));
}

}  // namespace
}  // namespace espalier::test
