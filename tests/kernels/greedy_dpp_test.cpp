// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/greedy_dpp/greedy_dpp.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <set>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

using Rows = std::vector<int64_t>;

// The kernel by its definition and determinants by elimination, in float64.
class Dpp {
 public:
  Dpp(const at::Tensor& features, const at::Tensor& relevance) : size_(features.size(0)), kernel_(size_ * size_) {
    const std::vector<double> x = to_doubles(features), r = to_doubles(relevance);
    const int64_t d = features.size(1);
    const auto dot = [&](int64_t i, int64_t j) {
      return std::inner_product(x.begin() + i * d, x.begin() + (i + 1) * d, x.begin() + j * d, 0.0);
    };
    for (int64_t i = 0; i < size_; ++i)
      for (int64_t j = 0; j < size_; ++j)
        kernel_[i * size_ + j] = i == j ? r[i] * r[i] : r[i] * r[j] * dot(i, j) / std::sqrt(dot(i, i) * dot(j, j));
  }

  double determinant(const Rows& picked) const {
    const auto n = static_cast<int64_t>(picked.size());
    std::vector<double> a(n * n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) a[i * n + j] = kernel_[picked[i] * size_ + picked[j]];
    double product = 1.0;
    for (int64_t k = 0; k < n; ++k) {
      product *= a[k * n + k];
      if (a[k * n + k] <= 0.0) return 0.0;
      for (int64_t i = k + 1; i < n; ++i)
        for (int64_t j = n - 1; j >= k; --j) a[i * n + j] -= a[i * n + k] / a[k * n + k] * a[k * n + j];
    }
    return product;
  }

  // Each pick multiplies the determinant by as much as any row could have, up to `tolerance`.
  void expect_greedy(const Rows& picks, double tolerance) const {
    Rows before;
    double volume = 1.0;
    for (const int64_t pick : picks) {
      double best = 0.0, got = 0.0;
      for (int64_t i = 0; i < size_; ++i) {
        if (std::find(before.begin(), before.end(), i) != before.end()) continue;
        Rows with = before;
        with.push_back(i);
        const double gain = determinant(with) / volume;
        best = std::max(best, gain);
        if (i == pick) got = gain;
      }
      EXPECT_NEAR(got, best, tolerance) << "pick " << before.size();
      before.push_back(pick);
      volume = determinant(before);
    }
    EXPECT_EQ(std::set<int64_t>(picks.begin(), picks.end()).size(), picks.size());
  }

 private:
  int64_t size_;
  std::vector<double> kernel_;
};

at::Tensor published_features() {
  return at::tensor({1., 0., .98, .2, 0., 1., .7, .7, -.2, 1.}, at::kFloat).view({5, 2});
}

struct Plain {
  Rows picks;
  std::vector<double> residuals;
};

Plain plain(const at::Tensor& features, const at::Tensor& relevance, int64_t num_kept) {
  const std::vector<double> x = to_doubles(features);
  Plain out{Rows(num_kept), std::vector<double>(num_kept)};
  kernels::greedy_dpp_plain(x.data(), relevance.const_data_ptr<float>(), features.size(0), features.size(1), num_kept,
                            nullptr, out.picks.data(), out.residuals.data());
  return out;
}

// Spec cdpruner, section 9.
TEST(GreedyDppPlain, PublishedPicks) {
  EXPECT_EQ(plain(published_features(), at::ones({5}), 2).picks, (Rows{0, 2}));
  const Plain relevant = plain(published_features(), at::tensor({.2F, .9F, .1F, 1.F, .05F}), 2);
  EXPECT_EQ(relevant.picks, (Rows{3, 1}));
  EXPECT_NEAR(relevant.residuals[0], 1.0, 1e-6);
  EXPECT_NEAR(relevant.residuals[1], .2463, 1e-4);
}

TEST(GreedyDppPlain, EveryPickIsBestAndResidualsFall) {
  for (uint64_t seed = 0; seed < 10; ++seed) {
    const at::Tensor x = random_tensor({12, 9}, at::kFloat, seed);
    const at::Tensor relevance = random_tensor({12}, at::kFloat, seed + 50).abs() + 0.1;
    const Plain got = plain(x, relevance, 9);
    Dpp(x, relevance).expect_greedy(got.picks, 1e-9);
    EXPECT_EQ(got.picks[0], relevance.argmax().item<int64_t>());
    EXPECT_TRUE(std::is_sorted(got.residuals.rbegin(), got.residuals.rend()));
  }
}

class GreedyDppTest : public DeviceTest {
 protected:
  static Rows select(const at::Tensor& features, const at::Tensor& relevance, const Rows& begin, const Rows& num_kept,
                     const ops::OptionalTensor& forced = {}) {
    ops::OptionalTensor forced_there;
    if (forced.has_value()) forced_there = forced->to(device());
    const at::Tensor out = ops::greedy_dpp(features.to(device()), relevance.to(device()), int64_tensor(begin),
                                           int64_tensor(num_kept), forced_there);
    EXPECT_EQ(out.scalar_type(), at::kLong);
    EXPECT_EQ(out.device().type(), device().type());
    const at::Tensor here = out.to(at::kCPU);
    return {here.const_data_ptr<int64_t>(), here.const_data_ptr<int64_t>() + here.numel()};
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, GreedyDppTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(GreedyDppTest, PublishedPicks) {
  const at::Tensor x = published_features().to(dtype());
  EXPECT_EQ(select(x, at::ones({5}), {0, 5}, {2}), (Rows{0, 2}));
  EXPECT_EQ(select(x, at::tensor({.2F, .9F, .1F, 1.F, .05F}), {0, 5}, {2}), (Rows{3, 1}));
}

TEST_P(GreedyDppTest, EveryPickIsBest) {
  for (const auto& [size, d, kept] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {2, 3, 2}, {17, 20, 17}, {49, 64, 20}, {60, 300, 30}}) {
    SCOPED_TRACE(testing::Message() << size << " x " << d);
    const at::Tensor x = random_tensor({size, d}, dtype(), static_cast<uint64_t>(size));
    const at::Tensor relevance = random_tensor({size}, at::kFloat, 5).abs() + 0.1;
    const Rows picks = select(x, relevance, {0, size}, {kept});
    Dpp(x, relevance).expect_greedy(picks, 1e-4);
    EXPECT_EQ(select(x, relevance * 8.0, {0, size}, {kept}), picks);
    EXPECT_EQ(select(x * 4.0, relevance, {0, size}, {kept}), picks);
  }
}

// More rows than a thread block has threads, on CUDA: several share the work; and beside a small image.
TEST_P(GreedyDppTest, MoreRowsThanThreadsOfABlock) {
  if (dtype() != at::kFloat) GTEST_SKIP() << "16-bit features are widened before the choice";
  for (const auto& [size, num_kept] : std::vector<std::pair<int64_t, int64_t>>{{1025, 12}, {2100, 20}}) {
    SCOPED_TRACE(size);
    const at::Tensor x = random_tensor({size + 30, 40}, dtype(), static_cast<uint64_t>(size));
    const at::Tensor relevance = random_tensor({size + 30}, at::kFloat, 5).abs() + 0.1;
    const at::Tensor forced = at::zeros({size + 30}, at::kBool);
    const Rows picks = select(x, relevance, {0, size, size + 30}, {num_kept, 30});
    const at::Tensor image = x.slice(0, 0, size), weights = relevance.slice(0, 0, size);
    const Rows own(picks.begin(), picks.begin() + num_kept);
    EXPECT_EQ(own, plain(image, weights, num_kept).picks);
    Rows alone = select(x.slice(0, size, size + 30), relevance.slice(0, size, size + 30), {0, 30}, {30});
    for (int64_t& i : alone) i += size;
    EXPECT_EQ(Rows(picks.begin() + num_kept, picks.end()), alone);
    // What the first picks leave is the same whether they were chosen or asked for.
    Rows sorted(own.begin(), own.begin() + 5);
    for (const int64_t i : sorted) forced[i] = true;
    std::sort(sorted.begin(), sorted.end());
    const Rows after = select(image, weights, {0, size}, {num_kept}, forced.slice(0, 0, size));
    EXPECT_EQ(Rows(after.begin(), after.begin() + 5), sorted);
    EXPECT_EQ(Rows(after.begin() + 5, after.end()), Rows(own.begin() + 5, own.end()));
  }
}

TEST_P(GreedyDppTest, BlocksAreIndependentAndPicksArePrefixes) {
  const at::Tensor x = random({300, 24}, 1), relevance = random_tensor({300}, at::kFloat, 2).abs();
  const Rows begin = {0, 100, 100, 101, 250, 300}, all = {100, 0, 1, 149, 50}, some = {17, 0, 1, 0, 20};
  const Rows long_order = select(x, relevance, begin, all);
  Rows expected;
  for (size_t b = 0; b < all.size(); ++b) {
    const Rows block(long_order.begin() + begin[b], long_order.begin() + begin[b + 1]);
    expected.insert(expected.end(), block.begin(), block.begin() + some[b]);
    Rows alone =
        select(x.slice(0, begin[b], begin[b + 1]), relevance.slice(0, begin[b], begin[b + 1]), {0, all[b]}, {all[b]});
    for (int64_t& i : alone) i += begin[b];
    EXPECT_EQ(alone, block);
  }
  EXPECT_EQ(select(x, relevance, begin, some), expected);
  EXPECT_TRUE(select(x, relevance, {0}, {}).empty());
}

// Beyond the rank nothing is left to gain: copies wait, and then come by relevance, equals in index order.
TEST_P(GreedyDppTest, DuplicatesAndTheRestComeByRelevance) {
  const at::Tensor x = random({20, 310}, 5), twice = at::cat({x, x});
  const Rows order = select(twice, at::ones({40}), {0, 40}, {40});
  std::set<int64_t> firsts;
  for (int64_t i = 0; i < 20; ++i) firsts.insert(order[i] % 20);
  EXPECT_EQ(firsts.size(), 20U);
  EXPECT_TRUE(std::is_sorted(order.begin() + 20, order.end()));
  Rows in_order(50);
  std::iota(in_order.begin(), in_order.end(), 0);
  const at::Tensor row = random({1, 77}, 6);
  EXPECT_EQ(select(row.expand({50, 77}), at::ones({50}), {0, 50}, {50}), in_order);
  EXPECT_EQ(select((row * 0.0).expand({50, 77}), at::ones({50}), {0, 50}, {50}), in_order);
  EXPECT_EQ(select(row.expand({4, 77}), at::tensor({.5F, 1.F, .75F, 1.F}), {0, 4}, {4}), (Rows{1, 3, 2, 0}));
}

TEST_P(GreedyDppTest, ForcedRowsComeFirst) {
  const at::Tensor x = random({40, 30}, 7), forced = at::zeros({40}, at::kBool), relevance = at::ones({40});
  for (const int64_t i : {3, 21, 20}) forced[i] = true;
  const Rows order = select(x, relevance, {0, 40}, {10}, forced);
  EXPECT_EQ(Rows(order.begin(), order.begin() + 3), (Rows{3, 20, 21}));
  const Dpp dpp(x, relevance);
  double best = 0.0;
  for (int64_t i = 0; i < 40; ++i)
    if (i != 3 && i != 20 && i != 21) best = std::max(best, dpp.determinant({3, 20, 21, i}));
  EXPECT_NEAR(dpp.determinant({3, 20, 21, order[3]}), best, 1e-4);
  EXPECT_EQ(select(x, relevance, {0, 40}, {2}, forced), (Rows{3, 20}));
}

// Real sizes, more than one launch, NaN: no crash, every row once.
TEST_P(GreedyDppTest, ManyBlocksAndNaN) {
  at::Tensor x = random({700, 64}, 8), relevance = random_tensor({700}, at::kFloat, 3).abs();
  x[5].fill_(NAN);
  relevance[7] = NAN;
  Rows begin = {0, 300}, num_kept = {300};
  for (int64_t at = 300; at < 700; at += 10) begin.push_back(at + 10), num_kept.push_back(10);
  Rows order = select(x, relevance, begin, num_kept);
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 700; ++i) ASSERT_EQ(order[i], i);
}

TEST_P(GreedyDppTest, StridedFeatures) {
  const at::Tensor x = random({30, 100}, 9), r = at::ones({30});
  EXPECT_EQ(select(x.slice(1, 3, 44), r, {0, 30}, {30}), select(x.slice(1, 3, 44).clone(), r, {0, 30}, {30}));
  EXPECT_EQ(select(x.slice(1, 0, 100, 2), r, {0, 30}, {30}), select(x.slice(1, 0, 100, 2).clone(), r, {0, 30}, {30}));
}

TEST(GreedyDppLevels, EachIsGreedy) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
      const at::Tensor x = random_tensor({50, 71}, dtype, 3), relevance = at::ones({50});
      Rows picks(20);
      const kernels::DppBlock block{0, 50, 20, relevance.const_data_ptr<float>(), nullptr, picks.data()};
      kernels::greedy_dpp_blocked({x.const_data_ptr(), 71, 71, kernels::element_type(x, "test")}, &block, 1, level);
      Dpp(x, relevance).expect_greedy(picks, 1e-4);
    }
}

TEST(GreedyDppArguments, WrongOnesThrow) {
  const at::Tensor x = random_tensor({10, 4}), r = at::ones({10});
  const auto call = [](const at::Tensor& features, const at::Tensor& relevance, const Rows& begin, const Rows& num_kept,
                       const ops::OptionalTensor& forced = {}) {
    return ops::greedy_dpp(features, relevance, int64_tensor(begin), int64_tensor(num_kept), forced);
  };
  EXPECT_NO_THROW(call(x, r, {0, 10}, {10}));
  EXPECT_THROW(call(x, r, {0, 10}, {11}), c10::Error);
  EXPECT_THROW(call(x, r, {0, 11}, {3}), c10::Error);
  EXPECT_THROW(call(x, at::ones({9}), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x, r.to(at::kDouble), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x.to(at::kDouble), r, {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x, r, {0, 10}, {3}, at::zeros({10})), c10::Error);
  const auto meta = at::TensorOptions().device(at::kMeta);
  EXPECT_EQ(call(at::empty({10, 4}, meta), at::empty({10}, meta), {0, 4, 10}, {2, 5}).size(0), 7);
}

}  // namespace
}  // namespace espalier::test
