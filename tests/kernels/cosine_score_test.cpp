// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/cosine_score/cosine_score.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& x, const at::Tensor& direction, const std::vector<int64_t>& index) {
  const std::vector<double> a = to_doubles(x), b = to_doubles(direction);
  const int64_t d = x.size(1);
  std::vector<double> out;
  for (int64_t v = 0; v < direction.size(0); ++v) {
    for (const int64_t i : index) {
      double dot = 0.0, aa = 0.0, bb = 0.0;
      for (int64_t k = 0; k < d; ++k) {
        dot += a[i * d + k] * b[v * d + k];
        aa += a[i * d + k] * a[i * d + k];
        bb += b[v * d + k] * b[v * d + k];
      }
      out.push_back(std::sqrt(aa) < 1e-12 || std::sqrt(bb) < 1e-12 ? 0.0 : dot / std::sqrt(aa) / std::sqrt(bb));
    }
  }
  return out;
}

std::vector<int64_t> all_rows(const at::Tensor& x) {
  std::vector<int64_t> index;
  for (int64_t i = 0; i < x.size(0); ++i) index.push_back(i);
  return index;
}

class CosineScoreTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, CosineScoreTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(CosineScoreTest, MatchesTheLoops) {
  for (const int64_t d : {1, 3, 16, 31, 64, 100, 1280, 4096}) {
    for (const int64_t v : {0, 1, 2, 3, 4, 5, 9}) {
      const at::Tensor x = random({37, d}, 1), direction = random({v, d}, 2);
      const at::Tensor out = ops::cosine_score(x, direction);
      EXPECT_EQ(out.scalar_type(), at::kFloat);
      EXPECT_EQ(out.device().type(), device().type());
      expect_close(out, oracle(x, direction, all_rows(x)), 2e-6, "d " + std::to_string(d) + ", v " + std::to_string(v));
    }
  }
}

TEST_P(CosineScoreTest, IndexStridesAndEmptyInputs) {
  const at::Tensor x = random({300, 70}, 3), direction = random({2, 35}, 4);
  const at::Tensor narrow = x.slice(1, 1, 36), spread = x.slice(1, 0, 70, 2);
  const std::vector<int64_t> index = {299, 0, 7, 7, 150};
  expect_close(ops::cosine_score(narrow, direction, int64_tensor(index).to(device())), oracle(narrow, direction, index),
               2e-6);
  expect_close(ops::cosine_score(spread, direction), oracle(spread, direction, all_rows(spread)), 2e-6);
  EXPECT_EQ(ops::cosine_score(x.slice(0, 0, 0), random({3, 70})).sizes(), (std::vector<int64_t>{3, 0}));
  EXPECT_EQ(ops::cosine_score(x, random({3, 70}), int64_tensor({}).to(device())).sizes(), (std::vector<int64_t>{3, 0}));
}

// Directions may be kept in another floating dtype than the rows.
TEST_P(CosineScoreTest, Float32Directions) {
  const at::Tensor x = random({50, 128}, 5), direction = random_tensor({2, 128}, at::kFloat, 6).to(device());
  expect_close(ops::cosine_score(x, direction), oracle(x, direction, all_rows(x)), 2e-6);
}

TEST_P(CosineScoreTest, ZeroRowsScoreZeroAndScaleDoesNotCount) {
  const at::Tensor x = random({3, 20}, 7), direction = random({1, 20}, 8);
  const at::Tensor rows = at::cat({x, x * 0.0, x * 16.0, x * (1.0 / 64)});
  const at::Tensor out = ops::cosine_score(rows, direction).view({4, 3});
  expect_close(out[1], at::zeros_like(out[1]), 0.0);
  expect_close(out[2], out[0], 1e-6);
  expect_close(out[3], out[0], 1e-6);
  expect_close(ops::cosine_score(x, direction * 0.0), out[1].unsqueeze(0), 0.0);
}

// Spec catp, V2: cosines of the context tokens with the mean of the query sample.
TEST_P(CosineScoreTest, PublishedVector) {
  if (dtype() != at::kFloat) GTEST_SKIP() << "the vector is given in decimals";
  const at::Tensor hidden =
      at::tensor({1., 0., 0., 0., 1., 0., .6, .8, 0., 0., 0., 1., -1., 0., 0., .5, .1, .8}, at::kFloat)
          .view({6, 3})
          .to(device());
  const at::Tensor query = at::tensor({.40, .46, .30}, at::kFloat).view({1, 3}).to(device());
  expect_close(ops::cosine_score(hidden, query),
               std::vector<double>{0.588745, 0.677057, 0.894892, 0.441559, -0.588745, 0.754019}, 1e-6);
  // Layer K + 1: positions 9 to 11 with coordinates rotated and 0.1 added, towards the mean of the surviving context.
  const at::Tensor image = at::tensor({.3, .5, .9, 1., .3, .2, .6, .6, -.4}, at::kFloat).view({3, 3}).to(device());
  const at::Tensor context = at::tensor({.72, .46, .42}, at::kFloat).view({1, 3}).to(device());
  expect_close(ops::cosine_score(image, context), at::tensor({0.807083, 0.930790, 0.604634}).view({1, 3}), 1e-6);
}

TEST(CosineScoreLevels, AgreeWithThePlainLoops) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t d : {0, 1, 17, 64, 513}) {
      const at::Tensor x = random_tensor({20, d}, dtype, 1), direction = random_tensor({6, d}, at::kFloat, 2);
      const auto type = kernels::element_type(x, "test");
      const at::Tensor expected = at::empty({6, 20}), got = at::empty({6, 20});
      kernels::cosine_score_plain(x.const_data_ptr(), d, type, direction.const_data_ptr<float>(), nullptr, 20, 6, d,
                                  expected.mutable_data_ptr<float>());
      for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
        kernels::CosineDirections(direction.const_data_ptr<float>(), 6, d, level)
            .score(x.const_data_ptr(), d, type, nullptr, 0, 20, got.mutable_data_ptr<float>(), 20);
        expect_close(got, expected, 2e-6, "d " + std::to_string(d));
      }
    }
  }
}

TEST(CosineScoreArguments, WrongOnesThrow) {
  const at::Tensor x = random_tensor({5, 4}), direction = random_tensor({1, 4});
  EXPECT_THROW(ops::cosine_score(x, random_tensor({1, 5})), c10::Error);
  EXPECT_THROW(ops::cosine_score(x, direction.view({4})), c10::Error);
  EXPECT_THROW(ops::cosine_score(x.to(at::kDouble), direction), c10::Error);
  EXPECT_THROW(ops::cosine_score(x, direction, int64_tensor({5})), c10::Error);
  EXPECT_THROW(ops::cosine_score(x, direction, int64_tensor({-1})), c10::Error);
  EXPECT_THROW(ops::cosine_score(x, direction, at::tensor({1}, at::kInt)), c10::Error);
  const auto meta = at::TensorOptions().device(at::kMeta);
  EXPECT_EQ(ops::cosine_score(at::empty({5, 4}, meta), at::empty({2, 4}, meta)).sizes(), (std::vector<int64_t>{2, 5}));
}

}  // namespace
}  // namespace espalier::test
