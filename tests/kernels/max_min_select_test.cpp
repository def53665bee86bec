// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/max_min_select/max_min_select.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

using ops::Distance;
using Rows = std::vector<int64_t>;

const std::vector<Distance> kDistances = {Distance::kCosine, Distance::kL1, Distance::kL2};

// Distances and the max-min objective by their definitions, in float64.
class Spread {
 public:
  Spread(const at::Tensor& features, Distance distance)
      : size_(features.size(0)), matrix_(static_cast<size_t>(size_ * size_)) {
    const std::vector<double> x = to_doubles(features);
    const int64_t d = features.size(1);
    const auto unit = [&](int64_t i, int64_t c) {
      double norm = 0.0;
      for (int64_t k = 0; k < d; ++k) norm += x[i * d + k] * x[i * d + k];
      return x[i * d + c] / std::max(std::sqrt(norm), 1e-12);
    };
    for (int64_t i = 0; i < size_; ++i)
      for (int64_t j = 0; j < size_; ++j) {
        double sum = 0.0;
        for (int64_t c = 0; c < d; ++c) {
          const double difference = x[i * d + c] - x[j * d + c];
          if (distance == Distance::kCosine) sum += unit(i, c) * unit(j, c);
          if (distance == Distance::kL1) sum += std::abs(difference);
          if (distance == Distance::kL2) sum += difference * difference;
        }
        if (distance == Distance::kCosine) sum = 1.0 - sum;
        matrix_[i * size_ + j] = distance == Distance::kL2 ? std::sqrt(sum) : sum;
      }
  }

  double between(int64_t i, int64_t j) const { return matrix_[i * size_ + j]; }

  // From row i to the nearest of `others` that is not i.
  double nearest(int64_t i, const Rows& others) const {
    double nearest = INFINITY;
    for (const int64_t j : others)
      if (j != i) nearest = std::min(nearest, between(i, j));
    return nearest;
  }

  // Smallest distance within a set.
  double of(const Rows& picked) const {
    double smallest = INFINITY;
    for (const int64_t i : picked) smallest = std::min(smallest, nearest(i, picked));
    return smallest;
  }

  double brute_force(int64_t count) const {
    double best = 0.0;
    for (uint64_t set = 0; set < (uint64_t{1} << size_); ++set) {
      if (__builtin_popcountll(set) != count) continue;
      Rows picked;
      for (int64_t i = 0; i < size_; ++i)
        if (set >> i & 1) picked.push_back(i);
      best = std::max(best, of(picked));
    }
    return best;
  }

  // Each pick is as far from those before it as any row could have been, up to `tolerance`.
  void expect_greedy(const Rows& picks, double tolerance) const {
    Rows all(size_), before;
    std::iota(all.begin(), all.end(), 0);
    for (size_t step = 0; step < picks.size(); ++step) {
      const Rows& others = step == 0 ? all : before;
      double best = -1.0;
      for (int64_t i = 0; i < size_; ++i)
        if (std::find(before.begin(), before.end(), i) == before.end()) best = std::max(best, nearest(i, others));
      if (size_ > 1) {
        EXPECT_NEAR(nearest(picks[step], others), best, tolerance * (1.0 + best)) << "pick " << step;
      }
      before.push_back(picks[step]);
    }
    EXPECT_EQ(std::set<int64_t>(picks.begin(), picks.end()).size(), picks.size());
  }

 private:
  int64_t size_;
  std::vector<double> matrix_;
};

struct Plain {
  Rows picks;
  std::vector<double> distances;
};

Plain plain(const at::Tensor& features, int64_t num_kept, Distance distance = Distance::kCosine) {
  const std::vector<double> x = to_doubles(features);
  Plain out{Rows(num_kept), std::vector<double>(num_kept)};
  kernels::max_min_select_plain(x.data(), features.size(0), features.size(1), num_kept, distance, nullptr,
                                out.picks.data(), out.distances.data());
  return out;
}

// Spec divprune, V1 and V2.
at::Tensor exact_features() {
  return at::tensor({1., 0., 1., 0., 0., 1., -1., 0., 0., -1., 1., 1.}, at::kFloat).view({6, 2});
}
at::Tensor decimal_features() {
  return at::tensor({3., 0., 3., 1., .5, 2., -1., -1., 2., 2., -3., .5}, at::kFloat).view({6, 2});
}

TEST(MaxMinPlain, PublishedOrdersAndDistances) {
  EXPECT_EQ(plain(exact_features(), 6).picks, (Rows{3, 0, 2, 4, 5, 1}));
  const Rows order = {3, 4, 5, 0, 2, 1};
  EXPECT_EQ(plain(decimal_features(), 6).picks, order);
  const std::vector<double> values = {2, .418762, .292893, .142507, .051317};
  const Spread spread(decimal_features(), Distance::kCosine);
  for (int64_t k = 2; k <= 6; ++k) {
    EXPECT_NEAR(spread.of({order.begin(), order.begin() + k}), values[k - 2], 1e-6);
    EXPECT_NEAR(plain(decimal_features(), k).distances[k - 1], values[k - 2], 1e-6);
  }
  EXPECT_NEAR(spread.brute_force(3), .757464, 1e-6);  // the greedy choice is not the best one
  EXPECT_EQ(plain(at::full({4, 3}, 1.0), 3).picks, (Rows{0, 1, 2}));
}

// A greedy set spreads at least half as far as the best one where the distance is a metric; picks come ever nearer; no
// row that is left is farther from the picks than the last of them was.
TEST(MaxMinPlain, IsHalfOfTheOptimumAndDistancesFall) {
  for (uint64_t seed = 0; seed < 20; ++seed)
    for (const Distance distance : kDistances) {
      const at::Tensor x = random_tensor({9, 4}, at::kFloat, seed);
      const Spread spread(x, distance);
      for (int64_t k = 2; k <= 9; ++k) {
        const Plain got = plain(x, k, distance);
        spread.expect_greedy(got.picks, 1e-12);
        for (int64_t i = 2; i < k; ++i) EXPECT_LE(got.distances[i], got.distances[i - 1] + 1e-12);
        for (int64_t i = 0; i < 9; ++i) {
          if (std::find(got.picks.begin(), got.picks.end(), i) != got.picks.end()) continue;
          EXPECT_LE(spread.nearest(i, got.picks), got.distances[k - 1] + 1e-12);
        }
        if (distance != Distance::kCosine) {
          EXPECT_GE(spread.of(got.picks), 0.5 * spread.brute_force(k) - 1e-12);
        }
      }
    }
}

class MaxMinTest : public DeviceTest {
 protected:
  static Rows select(const at::Tensor& features, const Rows& begin, const Rows& num_kept,
                     Distance distance = Distance::kCosine, const ops::OptionalTensor& forced = {}) {
    ops::OptionalTensor forced_there;
    if (forced.has_value()) forced_there = forced->to(device());
    const at::Tensor out =
        ops::max_min_select(features.to(device()), int64_tensor(begin), int64_tensor(num_kept), distance, forced_there);
    EXPECT_EQ(out.scalar_type(), at::kLong);
    EXPECT_EQ(out.device().type(), device().type());
    const at::Tensor here = out.to(at::kCPU);
    return {here.const_data_ptr<int64_t>(), here.const_data_ptr<int64_t>() + here.numel()};
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, MaxMinTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(MaxMinTest, PublishedOrders) {
  const at::Tensor scales = at::tensor({1., 2., 3., 4., 5., 6.}, at::kFloat).view({6, 1});
  for (const at::Tensor& x : {exact_features(), exact_features() * scales}) {
    EXPECT_EQ(select(x.to(dtype()), {0, 6}, {6}), (Rows{3, 0, 2, 4, 5, 1}));
    EXPECT_EQ(select(x.to(dtype()), {0, 6}, {4}), (Rows{3, 0, 2, 4}));
  }
  EXPECT_EQ(select(decimal_features().to(dtype()), {0, 6}, {6}), (Rows{3, 4, 5, 0, 2, 1}));
}

TEST_P(MaxMinTest, EveryPickIsFarthest) {
  for (const auto& [size, d] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {2, 3}, {17, 8}, {48, 33}, {49, 64}, {130, 20}, {150, 300}})
    for (const Distance distance : kDistances) {
      SCOPED_TRACE(testing::Message() << size << " x " << d << ", distance " << static_cast<int>(distance));
      const at::Tensor x = random_tensor({size, d}, dtype(), static_cast<uint64_t>(size));
      Spread(x, distance).expect_greedy(select(x, {0, size}, {size}, distance), 1e-5);
    }
}

// More rows than a thread block has threads, on CUDA: several share the work; and beside a small image.
TEST_P(MaxMinTest, MoreRowsThanThreadsOfABlock) {
  if (dtype() != at::kFloat) GTEST_SKIP() << "16-bit features are widened before the choice";
  for (const auto& [size, num_kept] : std::vector<std::pair<int64_t, int64_t>>{{1025, 12}, {2100, 30}}) {
    SCOPED_TRACE(size);
    const at::Tensor x = random_tensor({size + 30, 12}, dtype(), static_cast<uint64_t>(size));
    const Rows picks = select(x, {0, size, size + 30}, {num_kept, 30});
    Spread(x.slice(0, 0, size), Distance::kCosine).expect_greedy({picks.begin(), picks.begin() + num_kept}, 1e-5);
    Rows alone = select(x.slice(0, size, size + 30), {0, 30}, {30});
    for (int64_t& i : alone) i += size;
    EXPECT_EQ(Rows(picks.begin() + num_kept, picks.end()), alone);
  }
}

// Blocks of sizes 0 and 1 among them; numbers count from the start of all features.
TEST_P(MaxMinTest, BlocksAreIndependentAndPicksArePrefixes) {
  const at::Tensor x = random({400, 24}, 1);
  const Rows begin = {0, 100, 100, 101, 350, 400}, all = {100, 0, 1, 249, 50}, some = {37, 0, 1, 0, 20};
  const Rows long_order = select(x, begin, all);
  Rows expected;
  for (size_t b = 0; b < all.size(); ++b) {
    const Rows block(long_order.begin() + begin[b], long_order.begin() + begin[b + 1]);
    expected.insert(expected.end(), block.begin(), block.begin() + some[b]);
    Rows alone = select(x.slice(0, begin[b], begin[b + 1]), {0, all[b]}, {all[b]});
    for (int64_t& i : alone) i += begin[b];
    EXPECT_EQ(alone, block);
  }
  EXPECT_EQ(select(x, begin, some), expected);
  EXPECT_TRUE(select(x, {0}, {}).empty());
  EXPECT_TRUE(select(x.slice(0, 0, 0), {0, 0}, {0}).empty());
}

// Powers of two scale without rounding.
TEST_P(MaxMinTest, RowScaleDoesNotCountForTheCosine) {
  const at::Tensor x = random({90, 40}, 2), scales = at::full({90, 1}, 4.0F, x.options());
  scales.slice(0, 10, 50).fill_(0.25);
  EXPECT_EQ(select(x * scales, {0, 90}, {60}), select(x, {0, 90}, {60}));
}

// Second copies are at distance 0: they wait for every first copy, and then come in index order.
TEST_P(MaxMinTest, DuplicatesComeLastInIndexOrder) {
  for (const Distance distance : kDistances)
    for (const int64_t size : {7, 50, 150}) {
      const at::Tensor x = random({size, 310}, 5);
      const Rows order = select(at::cat({x, x}), {0, 2 * size}, {2 * size}, distance);
      std::set<int64_t> firsts;
      for (int64_t i = 0; i < size; ++i) firsts.insert(order[i] % size);
      EXPECT_EQ(firsts.size(), static_cast<size_t>(size));
      EXPECT_TRUE(std::is_sorted(order.begin() + size, order.end()));
    }
  Rows in_order(100);
  std::iota(in_order.begin(), in_order.end(), 0);
  const at::Tensor row = random({1, 77}, 6);
  for (const Distance distance : kDistances) {
    EXPECT_EQ(select(row.expand({100, 77}), {0, 100}, {100}, distance), in_order);
    EXPECT_EQ(select((row * 0.0).expand({100, 77}), {0, 100}, {100}, distance), in_order);
  }
}

TEST_P(MaxMinTest, ForcedRowsComeFirst) {
  const at::Tensor x = random({80, 12}, 7), forced = at::zeros({80}, at::kBool);
  for (const int64_t i : {3, 41, 40, 79}) forced[i] = true;
  const Rows order = select(x, {0, 50, 80}, {30, 10}, Distance::kL2, forced);
  EXPECT_EQ(Rows(order.begin(), order.begin() + 3), (Rows{3, 40, 41}));
  EXPECT_EQ(order[30], 79);
  const Spread spread(x.slice(0, 0, 50), Distance::kL2);
  double best = 0.0;
  for (int64_t i = 0; i < 50; ++i)
    if (i != 3 && i != 40 && i != 41) best = std::max(best, spread.nearest(i, {3, 40, 41}));
  EXPECT_NEAR(spread.nearest(order[3], {3, 40, 41}), best, 1e-5);
  EXPECT_EQ(select(x, {0, 50}, {2}, Distance::kL2, forced), (Rows{3, 40}));
}

// Real sizes, more than one launch, NaN: no crash, every row once.
TEST_P(MaxMinTest, ManyBlocksAndNaN) {
  at::Tensor x = random({1300, 64}, 8);
  x[5].fill_(NAN);
  for (const Distance distance : kDistances) {
    Rows begin = {0, 700}, num_kept = {700};
    for (int64_t at = 700; at < 1300; at += 10) begin.push_back(at + 10), num_kept.push_back(10);
    Rows order = select(x, begin, num_kept, distance);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 1300; ++i) ASSERT_EQ(order[i], i);
  }
}

TEST_P(MaxMinTest, StridedFeatures) {
  const at::Tensor x = random({60, 100}, 9);
  for (const Distance distance : kDistances) {
    EXPECT_EQ(select(x.slice(1, 3, 44), {0, 60}, {60}, distance),
              select(x.slice(1, 3, 44).clone(), {0, 60}, {60}, distance));
    EXPECT_EQ(select(x.slice(1, 0, 100, 2), {0, 60}, {60}, distance),
              select(x.slice(1, 0, 100, 2).clone(), {0, 60}, {60}, distance));
  }
}

TEST(MaxMinLevels, EachIsGreedy) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf})
    for (const Distance distance : kDistances)
      for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
        const at::Tensor x = random_tensor({150, 51}, dtype, 3);
        Rows picks(150);
        const kernels::SelectionBlock block{0, 150, 150, nullptr, picks.data()};
        kernels::max_min_select_blocked({x.const_data_ptr(), 51, 51, kernels::element_type(x, "test")}, &block, 1,
                                        distance, level);
        Spread(x, distance).expect_greedy(picks, 1e-5);
      }
}

TEST(MaxMinArguments, WrongOnesThrow) {
  const at::Tensor x = random_tensor({10, 4});
  const auto call = [](const at::Tensor& features, const Rows& begin, const Rows& num_kept,
                       const ops::OptionalTensor& forced = {}) {
    return ops::max_min_select(features, int64_tensor(begin), int64_tensor(num_kept), Distance::kCosine, forced);
  };
  EXPECT_NO_THROW(call(x, {0, 10}, {10}));
  EXPECT_THROW(call(x, {0, 10}, {11}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {-1}), c10::Error);
  EXPECT_THROW(call(x, {0, 11}, {3}), c10::Error);
  EXPECT_THROW(call(x, {0, 6, 4}, {3, 1}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3, 1}), c10::Error);
  EXPECT_THROW(call(x.view({40}), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x.to(at::kDouble), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3}, at::zeros({10})), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3}, at::zeros({9}, at::kBool)), c10::Error);
  const at::Tensor meta = at::empty({10, 4}, at::TensorOptions().device(at::kMeta));
  EXPECT_EQ(call(meta, {0, 4, 10}, {2, 5}).size(0), 7);
}

}  // namespace
}  // namespace espalier::test
