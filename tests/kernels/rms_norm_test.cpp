// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/rms_norm/rms_norm.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

constexpr double kEps = 1e-5;

std::vector<double> oracle(const at::Tensor& x, const at::Tensor& weight) {
  const int64_t d = weight.size(0);
  const std::vector<double> w = to_doubles(weight);
  std::vector<double> out = to_doubles(x);
  for (size_t row = 0; row < out.size(); row += d) {
    double sum = 0.0;
    for (int64_t i = 0; i < d; ++i) sum += out[row + i] * out[row + i];
    for (int64_t i = 0; i < d; ++i) out[row + i] *= w[i] / std::sqrt(sum / static_cast<double>(d) + kEps);
  }
  return out;
}

class RmsNormTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, RmsNormTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(RmsNormTest, MatchesTheFormula) {
  for (const int64_t rows : {0, 1, 2, 7, 300})
    for (const int64_t d : {1, 8, 17, 64, 100, 4096}) {
      const at::Tensor x = random({rows, d}, 1) * 3.0;
      const at::Tensor weight = random({d}, 2);
      expect_close(ops::rms_norm(x, weight, kEps), oracle(x, weight), tolerance(),
                   std::to_string(rows) + " rows of " + std::to_string(d));
    }
}

TEST_P(RmsNormTest, TakesAnyRankAndStrides) {
  const at::Tensor weight = random({24}, 2);
  const at::Tensor fused = random({5, 3, 40}, 3);
  for (const at::Tensor& x :
       {fused.narrow(2, 7, 24), random({24, 6}, 4).t(), random({2, 3, 4, 24}, 5), random({24}, 6)}) {
    const at::Tensor out = ops::rms_norm(x, weight, kEps);
    EXPECT_EQ(out.sizes(), x.sizes());
    expect_close(out, oracle(x, weight), tolerance());
  }
}

// Training and inference must see one model: the composed form that gradients take gives the kernel's numbers.
TEST_P(RmsNormTest, ComposedFormAgrees) {
  const at::Tensor x = random({6, 50}, 7);
  const at::Tensor weight = random({50}, 8);
  expect_close(ops::rms_norm(x.detach().set_requires_grad(true), weight, kEps), ops::rms_norm(x, weight, kEps),
               tolerance());
}

TEST_P(RmsNormTest, WrongArgumentsThrow) {
  const at::Tensor x = random({4, 6});
  EXPECT_THROW(ops::rms_norm(x, random({5}), kEps), c10::Error);
  EXPECT_THROW(ops::rms_norm(x, random({6, 1}), kEps), c10::Error);
  EXPECT_THROW(ops::rms_norm(x, random({6}).to(at::kDouble), kEps), c10::Error);
  EXPECT_THROW(ops::rms_norm(x.to(at::kInt), random({6}).to(at::kInt), kEps), c10::Error);
}

// Every CPU path by itself, whichever this machine would choose.
TEST_P(RmsNormTest, EachCpuPathMatchesTheFormula) {
  if (!device().is_cpu()) GTEST_SKIP() << "paths of the CPU";
  for (const int64_t d : {1, 15, 16, 63, 64, 81, 1024}) {
    const at::Tensor x = random({5, d}, 1);
    const at::Tensor weight = random({d}, 2);
    at::Tensor out = at::zeros_like(x);
    kernels::visit_element_type(x, "test", [&]<typename T>(T) {
      kernels::rms_norm_plain(x.const_data_ptr<T>(), weight.const_data_ptr<T>(), out.mutable_data_ptr<T>(), 0, 5, d,
                              kEps);
    });
    expect_close(out, oracle(x, weight), tolerance(), "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::rms_norm, kernels::avx512::rms_norm)(
          kernels::element_type(x, "test"), x.const_data_ptr(), weight.const_data_ptr(), out.mutable_data_ptr(), 0, 5,
          d, kEps);
      expect_close(out, oracle(x, weight), tolerance(), std::string(kernels::vector_kernel_name(level)));
    }
  }
}

// What torch's own half-precision models do: the normed row is rounded to the dtype before the weight is applied.
TEST(RmsNorm, RoundsBeforeTheWeight) {
  const at::Tensor x = random_tensor({9, 64}, at::kBFloat16, 1);
  const at::Tensor weight = random_tensor({64}, at::kBFloat16, 2);
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor expected = wide.mul((wide.pow(2).mean(-1, true) + kEps).rsqrt()).to(at::kBFloat16).mul(weight);
  expect_close(ops::rms_norm(x, weight, kEps), expected, 0.0);
}

TEST(RmsNorm, GradientsMatchFiniteDifferences) {
  const auto f = [](const std::vector<at::Tensor>& in) { return std::vector{ops::rms_norm(in[0], in[1], kEps)}; };
  expect_gradients_match(f, {random_tensor({3, 7}, at::kDouble, 1), random_tensor({7}, at::kDouble, 2)});
}

}  // namespace
}  // namespace espalier::test
