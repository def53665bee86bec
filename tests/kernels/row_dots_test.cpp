// SPDX-License-Identifier: Apache-2.0
// Products of rows at every level of vector instructions against float64, and their promise that equal rows give equal
// bits wherever they stand.
#include "kernels/support/row_dots.h"

#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>

#include "kernels/ops/cosine_score/cosine_score_vector.h"
#include "kernels/ops/max_min_select/max_min_select.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/cpu_levels.h"
#include "tests/support/tensors.h"

namespace espalier::test {
namespace {

using kernels::CpuLevel;
using kernels::DotPanel;

std::vector<CpuLevel> all_levels() {
  std::vector<CpuLevel> levels = vector_levels();
  levels.insert(levels.begin(), CpuLevel::kPlain);
  return levels;
}

std::vector<const void*> pointers(const at::Tensor& rows) {
  std::vector<const void*> all;
  for (int64_t i = 0; i < rows.size(0); ++i) all.push_back(rows[i].const_data_ptr());
  return all;
}

class RowDotsTest : public testing::TestWithParam<std::tuple<CpuLevel, at::ScalarType>> {};
INSTANTIATE_TEST_SUITE_P(Levels, RowDotsTest,
                         testing::Combine(testing::ValuesIn(all_levels()),
                                          testing::Values(at::kFloat, at::kBFloat16, at::kHalf)));

TEST_P(RowDotsTest, PanelsMatchTheFormula) {
  const auto [level, dtype] = GetParam();
  for (const int64_t d : {1, 7, 16, 33, 600}) {
    for (const int64_t columns : {1, 15, 17, 40, 48}) {
      const at::Tensor rows = random_tensor({13, d}, dtype, 1), packed = random_tensor({columns, d}, dtype, 2);
      DotPanel panel(d, kernels::element_type(rows, "test"), level);
      panel.pack(pointers(packed).data(), columns);
      at::Tensor out = at::empty({13, DotPanel::kColumns}, at::kFloat);
      panel.dots(pointers(rows).data(), 13, out.mutable_data_ptr<float>());
      const at::Tensor expected = rows.to(at::kDouble).matmul(packed.to(at::kDouble).t());
      expect_close(out.narrow(1, 0, columns) / std::sqrt(static_cast<double>(d)),
                   expected / std::sqrt(static_cast<double>(d)), 2e-6,
                   std::to_string(d) + " x " + std::to_string(columns));
      // Alone, and in another column.
      panel.pack(pointers(packed.narrow(0, columns - 1, 1)).data(), 1);
      at::Tensor alone = at::empty({1, DotPanel::kColumns}, at::kFloat);
      panel.dots(pointers(rows.narrow(0, 12, 1)).data(), 1, alone.mutable_data_ptr<float>());
      EXPECT_EQ(alone[0][0].item<float>(), out[12][columns - 1].item<float>());
    }
  }
}

TEST_P(RowDotsTest, CosineSumsMatchTheFormula) {
  const auto [level, dtype] = GetParam();
  if (level == CpuLevel::kPlain) GTEST_SKIP() << "the plain loops are the fallback of cosine_score_cpu.cpp";
  for (const int64_t d : {1, 15, 16, 50, 129}) {
    for (int64_t v = 0; v <= kernels::kCosineDirections; ++v) {
      const at::Tensor row = random_tensor({d}, dtype, 1), direction = random_tensor({4, d}, at::kFloat, 2);
      float dots[kernels::kCosineDirections], square;
      kernels::vector_form(level, kernels::avx2::row_cosine_sums, kernels::avx512::row_cosine_sums)(
          row.const_data_ptr(), kernels::element_type(row, "test"), d, direction.const_data_ptr<float>(), v, dots,
          &square);
      const at::Tensor wide = row.to(at::kDouble), sums = direction.to(at::kDouble).matmul(wide);
      EXPECT_NEAR(square, wide.dot(wide).item<double>(), 1e-5 * static_cast<double>(d));
      for (int64_t i = 0; i < v; ++i) EXPECT_NEAR(dots[i], sums[i].item<double>(), 1e-5 * static_cast<double>(d));
    }
  }
}

TEST(RowDifference, EveryLevelMatchesTheFormula) {
  for (const CpuLevel level : vector_levels())
    for (const int64_t d : {1, 16, 31, 32, 100}) {
      const at::Tensor x = random_tensor({d}, at::kFloat, 1), y = random_tensor({d}, at::kFloat, 2);
      const at::Tensor delta = x.to(at::kDouble) - y.to(at::kDouble);
      const auto difference =
          kernels::vector_form(level, kernels::avx2::row_difference, kernels::avx512::row_difference);
      const float* a = x.const_data_ptr<float>();
      const float* b = y.const_data_ptr<float>();
      EXPECT_NEAR(difference(a, b, d, false), delta.abs().sum().item<double>(), 1e-5 * static_cast<double>(d));
      EXPECT_NEAR(difference(a, b, d, true), delta.dot(delta).item<double>(), 1e-5 * static_cast<double>(d));
    }
}

}  // namespace
}  // namespace espalier::test
