// SPDX-License-Identifier: Apache-2.0
// AdamW against a plain loop in float64, and the schedule's values.
#include "training/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/tensors.h"
#include "training/schedule.h"

namespace espalier {
namespace {

// One parameter as plain numbers.
struct Reference {
  std::vector<double> value, first, second;
  bool is_decayed;
};

void reference_step(std::vector<Reference>& parameters, const std::vector<std::vector<double>>& gradients,
                    const AdamWOptions& o, double rate, int64_t step) {
  double sum = 0;
  for (const auto& g : gradients)
    for (const double x : g) sum += x * x;
  const double shrink = std::min(1.0, o.max_norm / (std::sqrt(sum) + 1e-6));
  for (size_t p = 0; p < parameters.size(); ++p)
    for (size_t i = 0; i < parameters[p].value.size(); ++i) {
      Reference& r = parameters[p];
      const double g = gradients[p][i] * shrink;
      r.first[i] = o.beta1 * r.first[i] + (1 - o.beta1) * g;
      r.second[i] = o.beta2 * r.second[i] + (1 - o.beta2) * g * g;
      const double m = r.first[i] / (1 - std::pow(o.beta1, double(step)));
      const double v = r.second[i] / (1 - std::pow(o.beta2, double(step)));
      if (r.is_decayed) r.value[i] -= rate * o.weight_decay * r.value[i];
      r.value[i] -= rate * m / (std::sqrt(v) + o.epsilon);
    }
}

TEST(AdamW, EqualsPlainLoop) {
  const AdamWOptions options{.weight_decay = 0.3, .max_norm = 2.0};
  std::vector<at::Tensor> leaves = {test::random_tensor({3, 4}, at::kFloat, 1).set_requires_grad(true),
                                    test::random_tensor({5}, at::kFloat, 2).set_requires_grad(true)};
  std::vector<Reference> reference;
  for (const at::Tensor& leaf : leaves) {
    const auto n = static_cast<size_t>(leaf.numel());
    reference.push_back(
        {test::to_doubles(leaf.detach()), std::vector<double>(n), std::vector<double>(n), leaf.dim() >= 2});
  }
  AdamW optimizer(leaves, options);
  for (int64_t step = 1; step <= 7; ++step) {
    std::vector<std::vector<double>> gradients;
    for (size_t p = 0; p < leaves.size(); ++p) {
      // Small ones that are not clipped, and large ones that are.
      const at::Tensor g = (step % 2 ? 0.1 : 3.0) * test::random_tensor(leaves[p].sizes(), at::kFloat, 10 * step + p);
      leaves[p].mutable_grad() = g.clone();
      gradients.push_back(test::to_doubles(g));
    }
    optimizer.step(0.01 * static_cast<double>(step));
    reference_step(reference, gradients, options, 0.01 * static_cast<double>(step), step);
    for (size_t p = 0; p < leaves.size(); ++p) {
      test::expect_close(leaves[p].detach().flatten(), reference[p].value, 1e-5);
      EXPECT_FALSE(leaves[p].grad().defined());
    }
  }
}

TEST(AdamW, AGradientThatIsNoNumberChangesNothing) {
  at::Tensor leaf = test::random_tensor({4}, at::kFloat, 1).set_requires_grad(true);
  const at::Tensor before = leaf.detach().clone();
  AdamW optimizer({leaf}, {});
  leaf.mutable_grad() = before * std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(std::isnan(optimizer.step(0.1)));
  test::expect_same(leaf.detach(), before);
  EXPECT_EQ(optimizer.steps_done(), 0);
}

TEST(RateSchedule, WarmsUpAndDecays) {
  const RateSchedule s{.peak = 2.0, .warm_up = 4, .steps = 14, .floor = 0.1};
  const double expected[] = {0.5, 1.0, 1.5, 2.0, 2.0, 1.82};
  for (int64_t step = 0; step < 6; ++step) EXPECT_NEAR(s.rate(step), expected[step], 1e-12) << step;
  EXPECT_NEAR(s.rate(9), 2.0 * 0.55, 1e-12);  // half way down
  EXPECT_NEAR(s.rate(14), 0.2, 1e-12);
  EXPECT_NEAR(s.rate(1000), 0.2, 1e-12);
}

}  // namespace
}  // namespace espalier
