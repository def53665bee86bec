// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/silu_mul/silu_mul.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& gate, const at::Tensor& up) {
  std::vector<double> out = to_doubles(gate);
  const std::vector<double> u = to_doubles(up);
  for (size_t i = 0; i < out.size(); ++i) out[i] = out[i] / (1.0 + std::exp(-out[i])) * u[i];
  return out;
}

class SiluMulTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, SiluMulTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(SiluMulTest, MatchesTheFormula) {
  for (const int64_t rows : {0, 1, 3, 200})
    for (const int64_t d : {1, 7, 16, 100, 4099}) {
      const at::Tensor gate = random({rows, d}, 1) * 4.0;
      const at::Tensor up = random({rows, d}, 2);
      expect_close(ops::silu_mul(gate, up), oracle(gate, up), tolerance(),
                   std::to_string(rows) + " rows of " + std::to_string(d));
    }
}

TEST_P(SiluMulTest, TakesAnyRankAndStrides) {
  const at::Tensor fused = random({9, 50}, 3);
  const std::vector<std::pair<at::Tensor, at::Tensor>> views{
      {fused.narrow(1, 0, 25), fused.narrow(1, 25, 25)},
      {fused.t(), random({50, 9}, 4)},
      {random({2, 3, 5}, 5), random({5, 3, 2}, 6).permute({2, 1, 0})},
      {random({}, 7), random({}, 8)}};
  for (const auto& [gate, up] : views) {
    const at::Tensor out = ops::silu_mul(gate, up);
    EXPECT_EQ(out.sizes(), gate.sizes());
    expect_close(out, oracle(gate, up), tolerance());
  }
}

// Where exp overflows or underflows the result must still be 0 or gate · up.
TEST_P(SiluMulTest, LargeGates) {
  const at::Tensor gate = at::tensor({-60000.0F, -200.0F, -89.0F, -88.0F, -0.0F, 0.0F, 20.0F, 100.0F, 60000.0F, NAN});
  const at::Tensor up = at::tensor({1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 1.0F, 0.5F, 0.5F, 1.0F});
  const at::Tensor g = gate.to(device(), dtype());
  const at::Tensor u = up.to(device(), dtype());
  // Long enough for a vector of any width and its tail.
  expect_close(ops::silu_mul(g.repeat({7}), u.repeat({7})), oracle(g.repeat({7}), u.repeat({7})), tolerance());
}

TEST_P(SiluMulTest, ComposedFormAgrees) {
  const at::Tensor gate = random({6, 50}, 7);
  const at::Tensor up = random({6, 50}, 8);
  expect_close(ops::silu_mul(gate, up.detach().set_requires_grad(true)), ops::silu_mul(gate, up), tolerance());
}

TEST_P(SiluMulTest, WrongArgumentsThrow) {
  EXPECT_THROW(ops::silu_mul(random({4, 6}), random({4, 5})), c10::Error);
  EXPECT_THROW(ops::silu_mul(random({4, 6}), random({6})), c10::Error);
  EXPECT_THROW(ops::silu_mul(random({4}), random({4}).to(at::kDouble)), c10::Error);
  EXPECT_THROW(ops::silu_mul(random({4}).to(at::kInt), random({4}).to(at::kInt)), c10::Error);
}

// Every CPU path by itself, whichever this machine would choose.
TEST_P(SiluMulTest, EachCpuPathMatchesTheFormula) {
  if (!device().is_cpu()) GTEST_SKIP() << "paths of the CPU";
  for (const int64_t d : {1, 15, 16, 81, 1024}) {
    const at::Tensor gate = random({5, d}, 1) * 10.0;
    const at::Tensor up = random({5, d}, 2);
    const kernels::SiluMulShape shape{5, d, d, d};
    at::Tensor out = at::zeros_like(gate);
    kernels::visit_element_type(gate, "test", [&]<typename T>(T) {
      kernels::silu_mul_plain(gate.const_data_ptr<T>(), up.const_data_ptr<T>(), out.mutable_data_ptr<T>(), shape, 0, 5);
    });
    expect_close(out, oracle(gate, up), tolerance(), "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::silu_mul, kernels::avx512::silu_mul)(
          kernels::element_type(gate, "test"), gate.const_data_ptr(), up.const_data_ptr(), out.mutable_data_ptr(),
          shape, 0, 5);
      expect_close(out, oracle(gate, up), tolerance(), std::string(kernels::vector_kernel_name(level)));
    }
  }
}

TEST(SiluMul, GradientsMatchFiniteDifferences) {
  const auto f = [](const std::vector<at::Tensor>& in) { return std::vector{ops::silu_mul(in[0], in[1])}; };
  expect_gradients_match(f, {random_tensor({3, 5}, at::kDouble, 1), random_tensor({3, 5}, at::kDouble, 2)});
}

}  // namespace
}  // namespace espalier::test
