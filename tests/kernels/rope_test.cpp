// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/rope/rope.h"

#include <ATen/ops/zeros_like.h>
#include "espalier/ops.h"
#include "kernels/support/chosen_kernels.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

// x · cos + rotate_half(x) · sin, x [n, h, d].
std::vector<double> oracle(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t heads = x.size(1);
  const int64_t d = x.size(2);
  const std::vector<double> in = to_doubles(x);
  const std::vector<double> c = to_doubles(cos);
  const std::vector<double> s = to_doubles(sin);
  std::vector<double> out(in.size());
  for (int64_t t = 0; t < x.size(0); ++t)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < d; ++i) {
        const int64_t row = (t * heads + h) * d;
        const double turned = i < d / 2 ? -in[row + i + d / 2] : in[row + i - d / 2];
        out[row + i] = in[row + i] * c[t * d + i] + turned * s[t * d + i];
      }
  return out;
}

class RopeTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, RopeTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(RopeTest, MatchesTheFormula) {
  for (const int64_t n : {0, 1, 3, 130})
    for (const int64_t d : {2, 6, 30, 32, 64, 80, 128, 256}) {
      const at::Tensor query = random({n, 8, d}, 1);
      const at::Tensor key = random({n, 2, d}, 2);
      const at::Tensor cos = random({n, d}, 3);
      const at::Tensor sin = random({n, d}, 4);
      const auto [q, k] = ops::rope(query, key, cos, sin);
      expect_close(q, oracle(query, cos, sin), tolerance(), "query, d " + std::to_string(d));
      expect_close(k, oracle(key, cos, sin), tolerance(), "key, d " + std::to_string(d));
    }
}

TEST_P(RopeTest, TakesStridedViews) {
  const int64_t n = 5, h = 6, g = 2, d = 20;
  const at::Tensor fused = random({n, h + 2 * g, d + 3}, 1);
  const at::Tensor tables = random({2, d, n}, 2);
  const at::Tensor cos = tables.select(0, 0).t();
  const at::Tensor sin = tables.select(0, 1).t();
  const std::vector<std::pair<at::Tensor, at::Tensor>> views{
      {fused.narrow(1, 0, h).narrow(2, 1, d), fused.narrow(1, h, g).narrow(2, 1, d)},
      {random({h, n, d}, 3).transpose(0, 1), random({n, d, g}, 4).transpose(1, 2)}};
  for (const auto& [query, key] : views) {
    const auto [q, k] = ops::rope(query, key, cos, sin);
    expect_close(q, oracle(query, cos, sin), tolerance(), "query");
    expect_close(k, oracle(key, cos, sin), tolerance(), "key");
    EXPECT_TRUE(q.is_contiguous() && k.is_contiguous());
  }
}

TEST_P(RopeTest, ComposedFormAgrees) {
  const at::Tensor query = random({4, 6, 10}, 1);
  const at::Tensor key = random({4, 3, 10}, 2);
  const at::Tensor cos = random({4, 10}, 3);
  const at::Tensor sin = random({4, 10}, 4);
  const auto [q, k] = ops::rope(query, key, cos, sin);
  const auto [q_composed, k_composed] = ops::rope(query.detach().set_requires_grad(true), key, cos, sin);
  expect_close(q_composed, q, tolerance());
  expect_close(k_composed, k, tolerance());
}

TEST_P(RopeTest, WrongArgumentsThrow) {
  const at::Tensor q = random({4, 6, 10});
  const at::Tensor k = random({4, 2, 10});
  const at::Tensor table = random({4, 10});
  EXPECT_THROW(ops::rope(q, random({3, 2, 10}), table, table), c10::Error);
  EXPECT_THROW(ops::rope(q, random({4, 2, 8}), table, table), c10::Error);
  EXPECT_THROW(ops::rope(q, k, random({4, 5}), table), c10::Error);
  EXPECT_THROW(ops::rope(q, k, table, random({1, 10})), c10::Error);
  EXPECT_THROW(ops::rope(q, k, table, table.to(at::kDouble)), c10::Error);
  EXPECT_THROW(ops::rope(random({4, 6, 9}), random({4, 2, 9}), random({4, 9}), random({4, 9})), c10::Error);
  EXPECT_THROW(ops::rope(random({4, 60}), k, table, table), c10::Error);
}

// Every CPU path by itself, whichever this machine would choose.
TEST_P(RopeTest, EachCpuPathMatchesTheFormula) {
  if (!device().is_cpu()) GTEST_SKIP() << "paths of the CPU";
  for (const int64_t d : {2, 30, 32, 34, 80, 128}) {
    const at::Tensor x = random({3, 5, d}, 1);
    const at::Tensor cos = random({3, d}, 2);
    const at::Tensor sin = random({3, d}, 3);
    const kernels::RopeShape shape{3, 5, d, x.stride(0), x.stride(1)};
    at::Tensor out = at::zeros_like(x);
    kernels::visit_element_type(x, "test", [&]<typename T>(T) {
      kernels::rope_plain(x.const_data_ptr<T>(), cos.const_data_ptr<T>(), sin.const_data_ptr<T>(),
                          out.mutable_data_ptr<T>(), shape, 0, 3);
    });
    expect_close(out, oracle(x, cos, sin), tolerance(), "plain");
    for (const kernels::CpuLevel level : vector_levels()) {
      out.zero_();
      kernels::vector_form(level, kernels::avx2::rope, kernels::avx512::rope)(
          kernels::element_type(x, "test"), x.const_data_ptr(), cos.const_data_ptr(), sin.const_data_ptr(),
          out.mutable_data_ptr(), shape, 0, 3);
      expect_close(out, oracle(x, cos, sin), tolerance(), std::string(kernels::vector_kernel_name(level)));
    }
  }
}

TEST(Rope, GradientsMatchFiniteDifferences) {
  const auto f = [](const std::vector<at::Tensor>& in) {
    const auto [q, k] = ops::rope(in[0], in[1], in[2], in[3]);
    return std::vector{q, k};
  };
  expect_gradients_match(f, {random_tensor({3, 2, 4}, at::kDouble, 1), random_tensor({3, 1, 4}, at::kDouble, 2),
                             random_tensor({3, 4}, at::kDouble, 3), random_tensor({3, 4}, at::kDouble, 4)});
}

}  // namespace
}  // namespace espalier::test
