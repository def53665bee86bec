// SPDX-License-Identifier: Apache-2.0
// Attention in two parts against attention over all keys at once, and the formula in float64.
#include "kernels/ops/merge_states/merge_states.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct States {
  std::vector<double> output, lse;
};

// The definition, one row and head after another.
States oracle(const at::Tensor& output_a, const at::Tensor& lse_a, const at::Tensor& output_b,
              const at::Tensor& lse_b) {
  const std::vector<double> a = to_doubles(output_a), b = to_doubles(output_b), la = to_doubles(lse_a),
                            lb = to_doubles(lse_b);
  const int64_t n = output_a.size(0), h = output_a.size(1), d = output_a.size(2);
  States out{std::vector<double>(a.size(), 0.0), std::vector<double>(la.size(), -kInfinity)};
  for (int64_t i = 0; i < n; ++i)
    for (int64_t head = 0; head < h; ++head) {
      const double peak = std::max(la[head * n + i], lb[head * n + i]);
      if (peak == -kInfinity) continue;
      const double wa = std::exp(la[head * n + i] - peak), wb = std::exp(lb[head * n + i] - peak);
      out.lse[head * n + i] = peak + std::log(wa + wb);
      for (int64_t j = (i * h + head) * d; j < (i * h + head + 1) * d; ++j)
        out.output[j] = ((wa > 0 ? wa * a[j] : 0.0) + (wb > 0 ? wb * b[j] : 0.0)) / (wa + wb);
    }
  return out;
}

class MergeStatesTest : public DeviceTest {
 protected:
  static at::Tensor random_lse(int64_t h, int64_t n, uint64_t seed) {
    return random_tensor({h, n}, at::kFloat, seed).to(device()) * 4.0;
  }
  static void expect_lse(const at::Tensor& actual, const std::vector<double>& expected) {
    const std::vector<double> lse = to_doubles(actual);
    ASSERT_EQ(lse.size(), expected.size());
    for (size_t i = 0; i < lse.size(); ++i)
      EXPECT_TRUE(lse[i] == expected[i] || std::abs(lse[i] - expected[i]) <= 1e-6 * (1 + std::abs(expected[i])))
          << lse[i] << " for " << expected[i] << " at " << i;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, MergeStatesTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(MergeStatesTest, MatchesTheFormula) {
  for (const int64_t n : {0, 1, 5, 130})
    for (const int64_t d : {1, 7, 16, 80, 128, 300}) {
      const at::Tensor a = random({n, 6, d}, 1), b = random({n, 6, d}, 2);
      const at::Tensor lse_a = random_lse(6, n, 3), lse_b = random_lse(6, n, 4);
      const auto [output, lse] = ops::merge_states(a, lse_a, b, lse_b);
      EXPECT_EQ(output.scalar_type(), dtype());
      EXPECT_EQ(lse.scalar_type(), at::kFloat);
      const States expected = oracle(a, lse_a, b, lse_b);
      expect_close(output, expected.output, tolerance(), std::to_string(n) + " rows of " + std::to_string(d));
      expect_lse(lse, expected.lse);
    }
}

// What it is for: a prefix and the rest, each in a part of one buffer; the second part causal, so that the first of its
// rows sees one key of it.
TEST_P(MergeStatesTest, PartsMakeAttentionOverAllKeys) {
  const int64_t prefix = 150, rest = 40, n = prefix + rest;
  const at::Tensor query = random({rest, 4, 64}, 1), key = random({n, 2, 64}, 2), value = random({n, 2, 64}, 3);
  const auto attend = [&](int64_t key_begin, int64_t num_keys, bool is_causal) {
    return ops::attention({query, key, value, int64_tensor({0, rest}), int64_tensor({key_begin}),
                           int64_tensor({num_keys}), 0.2, is_causal});
  };
  const auto [output_a, lse_a] = attend(0, prefix, false);
  const auto [output_b, lse_b] = attend(prefix, rest, true);
  const auto [output, lse] = ops::merge_states(output_a, lse_a, output_b, lse_b);
  const auto [expected, expected_lse] = attend(0, n, true);
  expect_close(output, to_doubles(expected), 2 * tolerance());
  expect_close(lse, to_doubles(expected_lse), 2e-5);
}

TEST_P(MergeStatesTest, EmptyPartsCountNothing) {
  const at::Tensor a = random({3, 2, 40}, 1), lse = random_lse(2, 3, 2);
  const at::Tensor nothing = at::full_like(a, std::numeric_limits<double>::quiet_NaN());
  const at::Tensor empty = at::full_like(lse, -kInfinity);
  for (const bool is_first : {true, false}) {
    const auto [output, merged] =
        is_first ? ops::merge_states(nothing, empty, a, lse) : ops::merge_states(a, lse, nothing, empty);
    expect_same(output, a);
    expect_same(merged, lse);
  }
  const auto [output, merged] = ops::merge_states(nothing, empty, nothing, empty);
  expect_close(output, std::vector<double>(a.numel(), 0.0), 0.0);
  expect_same(merged, empty);
}

// Far apart, and at the ends of float: never NaN.
TEST_P(MergeStatesTest, ExtremeStatesStayFinite) {
  const at::Tensor a = random({4, 1, 16}, 1), b = random({4, 1, 16}, 2);
  const at::Tensor lse_a = random_lse(1, 4, 3), lse_b = lse_a.clone();
  lse_a.select(1, 0).fill_(3e38);
  lse_b.select(1, 1).fill_(-3e38);
  lse_a.select(1, 2).fill_(80.0);
  lse_b.select(1, 2).fill_(-80.0);
  const auto [output, lse] = ops::merge_states(a, lse_a, b, lse_b);
  const States expected = oracle(a, lse_a, b, lse_b);
  expect_close(output, expected.output, tolerance());
  expect_lse(lse, expected.lse);
}

TEST_P(MergeStatesTest, TakesStridedInputs) {
  const at::Tensor outputs = random({9, 8, 32}, 1), states = random_lse(4, 20, 2);
  const at::Tensor a = outputs.narrow(1, 0, 4), b = outputs.narrow(1, 4, 4);
  const at::Tensor lse_a = states.narrow(1, 3, 9), lse_b = random_lse(9, 4, 3).t();
  const auto [output, lse] = ops::merge_states(a, lse_a, b, lse_b);
  const States expected = oracle(a, lse_a, b, lse_b);
  expect_close(output, expected.output, tolerance());
  expect_lse(lse, expected.lse);
}

TEST_P(MergeStatesTest, ComposedFormAgrees) {
  const at::Tensor a = random({6, 4, 20}, 1), b = random({6, 4, 20}, 2);
  const at::Tensor lse_a = random_lse(4, 6, 3), lse_b = random_lse(4, 6, 4);
  lse_a.select(1, 2).fill_(-kInfinity);
  const auto [output, lse] = ops::merge_states(a, lse_a, b, lse_b);
  const auto [composed, composed_lse] = ops::merge_states(a, lse_a, b.detach().set_requires_grad(true), lse_b);
  EXPECT_TRUE(composed.requires_grad());
  expect_close(composed, to_doubles(output), tolerance());
  expect_close(composed_lse, to_doubles(lse), 1e-6);
}

// Every CPU path by itself, whichever this machine would choose.
TEST_P(MergeStatesTest, EachCpuPathMatchesTheFormula) {
  if (!device().is_cpu()) GTEST_SKIP() << "paths of the CPU";
  const float nothing = -std::numeric_limits<float>::infinity();
  const std::vector<kernels::MergeWeights> weights = {
      kernels::merge_weights(1.5F, 0.25F), kernels::merge_weights(nothing, 2.0F), kernels::merge_weights(2.0F, nothing),
      kernels::merge_weights(nothing, nothing)};
  for (const int64_t d : {1, 15, 16, 81, 512}) {
    const at::Tensor a = random({4, d}, 1), b = random({4, d}, 2);
    std::vector<double> expected;
    const std::vector<double> from_a = to_doubles(a), from_b = to_doubles(b);
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t j = i * d; j < (i + 1) * d; ++j)
        expected.push_back(weights[i].a * from_a[j] + weights[i].b * from_b[j]);
    at::Tensor out = at::empty_like(a);
    kernels::visit_element_type(a, "test", [&]<typename T>(T) {
      for (int64_t i = 0; i < 4; ++i)
        kernels::merge_row_plain(a.const_data_ptr<T>() + i * d, b.const_data_ptr<T>() + i * d, weights[i], d,
                                 out.mutable_data_ptr<T>() + i * d);
    });
    expect_close(out, expected, tolerance(), "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::merge_rows, kernels::avx512::merge_rows)(
          kernels::element_type(a, "test"), a.const_data_ptr(), b.const_data_ptr(), weights.data(), 4, d,
          out.mutable_data_ptr());
      expect_close(out, expected, tolerance(), std::string(kernels::vector_kernel_name(level)));
    }
  }
}

TEST_P(MergeStatesTest, WrongArgumentsThrow) {
  const at::Tensor a = random({5, 4, 8}), lse = random_lse(4, 5, 1);
  EXPECT_NO_THROW(ops::merge_states(a, lse, a, lse));
  EXPECT_THROW(ops::merge_states(a, lse, random({4, 4, 8}), lse), c10::Error);
  EXPECT_THROW(ops::merge_states(a, lse.t(), a, lse), c10::Error);
  EXPECT_THROW(ops::merge_states(a, lse, a, lse.to(at::kDouble)), c10::Error);
  EXPECT_THROW(ops::merge_states(a, lse, a.to(at::kDouble), lse), c10::Error);
  EXPECT_THROW(ops::merge_states(a.to(at::kInt), lse, a.to(at::kInt), lse), c10::Error);
}

TEST(MergeStates, GradientsMatchFiniteDifferences) {
  const at::Tensor lse_a = random_tensor({2, 3}, at::kDouble, 3), lse_b = random_tensor({2, 3}, at::kDouble, 4);
  const auto f = [](const std::vector<at::Tensor>& in) {
    const auto [output, lse] = ops::merge_states(in[0], in[1], in[2], in[3]);
    return std::vector{output, lse};
  };
  expect_gradients_match(
      f, {random_tensor({3, 2, 4}, at::kDouble, 1), lse_a, random_tensor({3, 2, 4}, at::kDouble, 2), lse_b});
}

TEST(MergeStates, GradientsOfAnEmptyPartAreZero) {
  const at::Tensor a = random_tensor({2, 1, 4}, at::kFloat, 1).set_requires_grad(true);
  const at::Tensor b = random_tensor({2, 1, 4}, at::kFloat, 2).set_requires_grad(true);
  const at::Tensor lse_a = random_tensor({1, 2}).set_requires_grad(true);
  const at::Tensor lse_b = at::full_like(random_tensor({1, 2}), -kInfinity).set_requires_grad(true);
  const auto [output, lse] = ops::merge_states(a, lse_a, b, lse_b);
  (output.sum() + lse.sum()).backward();
  expect_close(a.grad(), std::vector<double>(8, 1.0), 1e-6);
  expect_close(b.grad(), std::vector<double>(8, 0.0), 0.0);
  expect_close(lse_a.grad(), std::vector<double>(2, 1.0), 1e-6);
  expect_close(lse_b.grad(), std::vector<double>(2, 0.0), 0.0);
}

}  // namespace
}  // namespace espalier::test
