// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/zeros.h>

#include "espalier/ops.h"
#include "kernels/ops/linear/linear.h"
#include "kernels/ops/linear_int8/linear_int8.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& x, const at::Tensor& weight) {
  const std::vector<double> a = to_doubles(x), w = to_doubles(weight);
  const int64_t in = weight.size(1), out = weight.size(0), rows = in == 0 ? 0 : x.numel() / in;
  std::vector<double> y(static_cast<size_t>(rows * out));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t o = 0; o < out; ++o)
      for (int64_t i = 0; i < in; ++i) y[r * out + o] += a[r * in + i] * w[o * in + i];
  return y;
}

class LinearTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, LinearTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

// Rows on both sides of the border between our loops and the library's product; sums of n products of order 1.
TEST_P(LinearTest, MatchesTheFormula) {
  for (const int64_t rows : {0, 1, 2, 5, 8, 9, 40})
    for (const int64_t in : {1, 15, 16, 31, 33, 200})
      for (const int64_t out : {1, 3, 4, 50}) {
        const at::Tensor x = random({rows, in}, 1), weight = random({out, in}, 2) / std::sqrt(double(in));
        expect_close(ops::linear(x, weight), oracle(x, weight), 4 * tolerance(),
                     std::to_string(rows) + " x " + std::to_string(in) + " x " + std::to_string(out));
      }
}

TEST_P(LinearTest, TakesAnyRankAndStrides) {
  const at::Tensor weight = random({6, 10}, 1), wide = random({4, 20}, 2);
  for (const at::Tensor& x : {random({10}, 3), random({2, 3, 10}, 4), wide.narrow(1, 5, 10)}) {
    const at::Tensor y = ops::linear(x, weight);
    EXPECT_EQ(y.size(-1), 6);
    expect_close(y, oracle(x, weight), 8 * tolerance());
  }
  expect_close(ops::linear(wide, random({20, 7}, 5).t()), oracle(wide, random({20, 7}, 5).t().contiguous()),
               16 * tolerance());
}

// A row's result does not depend on the rows beside it.
TEST_P(LinearTest, RowsAreIndependent) {
  if (!device().is_cpu()) GTEST_SKIP() << "the library's product on a GPU promises nothing of the kind";
  const at::Tensor x = random({8, 300}, 1), weight = random({33, 300}, 2);
  const at::Tensor together = ops::linear(x, weight);
  for (int64_t r = 0; r < 8; ++r)
    if (kernels::cpu_level() != kernels::CpuLevel::kPlain) expect_same(ops::linear(x[r], weight), together[r]);
}

TEST_P(LinearTest, EachCpuPathMatchesTheFormula) {
  if (!device().is_cpu()) GTEST_SKIP() << "paths of the CPU";
  for (int64_t rows = 1; rows <= kernels::kFewRows; ++rows) {
    const at::Tensor x = random({rows, 77}, 1), weight = random({13, 77}, 2) / std::sqrt(77.0);
    const kernels::LinearShape shape{rows, 77, 13};
    at::Tensor out = at::zeros({rows, 13}, x.options());
    kernels::visit_element_type(x, "test", [&]<typename T>(T) {
      kernels::linear_plain(x.const_data_ptr<T>(), weight.const_data_ptr<T>(), out.mutable_data_ptr<T>(), shape, 0, 13);
    });
    expect_close(out, oracle(x, weight), 4 * tolerance(), "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::linear_rows, kernels::avx512::linear_rows)(
          kernels::element_type(x, "test"), x.const_data_ptr(), weight.const_data_ptr(), out.mutable_data_ptr(), shape,
          0, 13);
      expect_close(out, oracle(x, weight), 4 * tolerance(), std::string(kernels::vector_kernel_name(level)));
    }
  }
}

// What is added, whatever multiplies: few rows, many, and float32's product in place of one that the CPU has not.
TEST_P(LinearTest, BiasIsAddedBeforeRounding) {
  for (const int64_t rows : {1, 40}) {
    const at::Tensor x = random({rows, 50}, 1), weight = random({9, 50}, 2) / std::sqrt(50.0), bias = random({9}, 3);
    std::vector<double> expected = oracle(x, weight);
    const std::vector<double> added = to_doubles(bias);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i % added.size()];
    expect_close(ops::linear(x, weight, bias), expected, 4 * tolerance());
  }
  EXPECT_THROW(ops::linear(random({4, 6}), random({5, 6}), random({4})), c10::Error);
}

// The widened product and its pieces are one sum: more outputs than one piece of the weight holds.
TEST_P(LinearTest, WidenedProductMatchesTheFormula) {
  const at::Tensor x = random({12, 4096}, 1), weight = random({300, 4096}, 2) / 64.0;
  expect_close(kernels::linear_widened(x, weight, std::nullopt), oracle(x, weight), 4 * tolerance());
  expect_close(ops::linear(x, weight), oracle(x, weight), 4 * tolerance());
}

TEST_P(LinearTest, WrongArgumentsThrow) {
  EXPECT_THROW(ops::linear(random({4, 6}), random({4, 5})), c10::Error);
  EXPECT_THROW(ops::linear(random({4, 6}), random({6})), c10::Error);
  EXPECT_THROW(ops::linear(random({4, 6}), random({4, 6}).to(at::kDouble)), c10::Error);
}

TEST(Linear, GradientsMatchFiniteDifferences) {
  expect_gradients_match(
      [](const std::vector<at::Tensor>& in) { return std::vector<at::Tensor>{ops::linear(in[0], in[1])}; },
      {random_tensor({3, 5}, at::kDouble, 1), random_tensor({4, 5}, at::kDouble, 2)});
}

// ---- linear_int8 ----

struct Quantised {
  at::Tensor weight, scale;
};
Quantised quantised(int64_t out, int64_t in, uint64_t seed, at::Device device) {
  const at::Tensor weight = (random_tensor({out, in}, at::kFloat, seed) * 40).round().clamp(-127, 127).to(at::kChar);
  const at::Tensor scale = random_tensor({out}, at::kFloat, seed + 1).abs() / (40 * std::sqrt(double(in)));
  return {weight.to(device), scale.to(device)};
}

TEST_P(LinearTest, Int8MatchesTheFormula) {
  for (const int64_t rows : {0, 1, 3, 8, 9, 40})
    for (const int64_t in : {1, 15, 16, 48, 77})
      for (const int64_t out : {1, 2, 51}) {
        const at::Tensor x = random({rows, in}, 1);
        const auto [weight, scale] = quantised(out, in, 2, device());
        const at::Tensor wide = weight.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1);
        expect_close(ops::linear_int8(x, weight, scale), oracle(x, wide), 8 * tolerance(),
                     std::to_string(rows) + " x " + std::to_string(in) + " x " + std::to_string(out));
      }
}

TEST_P(LinearTest, Int8TakesAnyRankAndStrides) {
  const auto [weight, scale] = quantised(6, 10, 3, device());
  const at::Tensor wide = weight.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1);
  for (const at::Tensor& x : {random({10}, 3), random({2, 3, 10}, 4), random({4, 20}, 2).narrow(1, 5, 10)})
    expect_close(ops::linear_int8(x, weight, scale), oracle(x, wide), 8 * tolerance());
  expect_close(ops::linear_int8(random({2, 10}, 5), weight.t().contiguous().t(), scale),
               oracle(random({2, 10}, 5), wide), 8 * tolerance());
}

TEST_P(LinearTest, Int8WrongArgumentsThrow) {
  const auto [weight, scale] = quantised(6, 10, 3, device());
  const at::Tensor x = random({2, 10});
  EXPECT_THROW(ops::linear_int8(x, weight.to(at::kFloat), scale), c10::Error);
  EXPECT_THROW(ops::linear_int8(x, weight, scale.narrow(0, 0, 5)), c10::Error);
  EXPECT_THROW(ops::linear_int8(x, weight, scale.to(at::kHalf)), c10::Error);
  EXPECT_THROW(ops::linear_int8(random({2, 9}), weight, scale), c10::Error);
}

TEST(LinearInt8, EachCpuPathMatchesTheFormula) {
  const auto [weight, scale] = quantised(13, 77, 4, at::kCPU);
  const at::Tensor wide = weight.to(at::kDouble) * scale.to(at::kDouble).unsqueeze(1);
  for (int64_t rows = 1; rows <= kernels::kFewRows; ++rows) {
    const at::Tensor x = random_tensor({rows, 77}, at::kFloat, 1);
    const kernels::LinearShape shape{rows, 77, 13};
    at::Tensor out = at::zeros({rows, 13}, at::kFloat);
    kernels::linear_int8_plain(x.const_data_ptr<float>(), weight.const_data_ptr<int8_t>(),
                               scale.const_data_ptr<float>(), out.data_ptr<float>(), shape, 0, 13);
    expect_close(out, oracle(x, wide), 1e-5, "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::linear_int8_rows, kernels::avx512::linear_int8_rows)(
          kernels::ElementType::kFloat32, x.const_data_ptr(), weight.const_data_ptr<int8_t>(),
          scale.const_data_ptr<float>(), out.data_ptr(), shape, 0, 13);
      expect_close(out, oracle(x, wide), 1e-5, std::string(kernels::vector_kernel_name(level)));
    }
  }
}

}  // namespace
}  // namespace espalier::test
