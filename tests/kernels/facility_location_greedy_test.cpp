// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/facility_location_greedy/facility_location_greedy.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/ops.h"
#include "kernels/support/tensor_checks.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

using ops::Similarity;

// The objective of CATP's eq. 5 by its definition, in float64: the oracle for values, gains and brute force.
class Objective {
 public:
  Objective(const at::Tensor& features, Similarity similarity, double coverage_scale = 1.0,
            std::vector<double> modular = {})
      : size_(features.size(0)),
        scale_(coverage_scale),
        modular_(std::move(modular)),
        sim_(static_cast<size_t>(size_ * size_)) {
    const std::vector<double> x = to_doubles(features);
    const int64_t d = features.size(1);
    const auto dot = [&](int64_t i, int64_t j) {
      return std::inner_product(x.begin() + i * d, x.begin() + (i + 1) * d, x.begin() + j * d, 0.0);
    };
    std::vector<double> norm;
    for (int64_t i = 0; i < size_; ++i) norm.push_back(std::sqrt(dot(i, i)));
    for (int64_t i = 0; i < size_; ++i) {
      for (int64_t j = 0; j < size_; ++j) {
        const bool is_zero = norm[i] < 1e-12 || norm[j] < 1e-12;
        sim_[i * size_ + j] = is_zero ? 0.0 : dot(i, j) / (norm[i] * norm[j]);
      }
    }
    const double low = *std::min_element(sim_.begin(), sim_.end()), high = *std::max_element(sim_.begin(), sim_.end());
    for (double& s : sim_) {
      if (similarity == Similarity::kAffine) s = (1.0 + s) / 2.0;
      if (similarity == Similarity::kClamp) s = std::max(0.0, s);
      if (similarity == Similarity::kMinmax) s = high - low < 1e-12 ? 0.5 : (s - low) / (high - low);
    }
  }

  double of(const std::vector<int64_t>& picked) const {
    double value = 0.0;
    for (int64_t x = 0; x < size_; ++x) {
      double covered = 0.0;
      for (const int64_t y : picked) covered = std::max(covered, sim_[x * size_ + y]);
      value += scale_ * covered;
    }
    for (const int64_t y : picked) value += modular_.empty() ? 0.0 : modular_[y];
    return value;
  }

  // The best value of any set of `count` rows.
  double brute_force(int64_t count) const {
    double best = 0.0;
    for (uint64_t set = 0; set < (uint64_t{1} << size_); ++set) {
      if (__builtin_popcountll(set) != count) continue;
      std::vector<int64_t> picked;
      for (int64_t y = 0; y < size_; ++y) {
        if (set >> y & 1) picked.push_back(y);
      }
      best = std::max(best, of(picked));
    }
    return best;
  }

 private:
  int64_t size_;
  double scale_;
  std::vector<double> modular_;
  std::vector<double> sim_;
};

struct Plain {
  std::vector<int64_t> picks;
  std::vector<double> gains;
};

Plain plain(const at::Tensor& features, int64_t num_kept, Similarity map = Similarity::kAffine,
            const std::vector<float>& modular = {}, double coverage_scale = 1.0) {
  const std::vector<double> x = to_doubles(features);
  Plain out{std::vector<int64_t>(num_kept), std::vector<double>(num_kept)};
  const kernels::CoverageObjective objective{map, coverage_scale, modular.empty() ? nullptr : modular.data()};
  kernels::facility_location_greedy_plain(x.data(), features.size(0), features.size(1), num_kept, objective,
                                          out.picks.data(), out.gains.data());
  return out;
}

at::Tensor published_features() {
  return at::tensor({1., 0., 0., .9, .1, 0., 0., 1., 0., 0., .8, .6, 0., 0., 1., .5, .5, .5}, at::kFloat).view({6, 3});
}

const std::vector<double> kPublishedAlignment = {0.552705, 0.581484, 0.763523, 0.963801, 0.921637, 0.926006};

std::vector<float> scaled_alignment(double factor) {
  std::vector<float> modular;
  for (const double a : kPublishedAlignment) modular.push_back(static_cast<float>(factor * a));
  return modular;
}

struct PublishedRun {
  double lambda;
  std::vector<int64_t> order;
  std::vector<double> value;
};

// Spec catp, V1.
const std::vector<PublishedRun> kPublishedRuns = {
    {0.0, {5, 0, 3, 4, 2, 1}, {5.088959, 5.478437, 5.696942, 5.896942, 5.996942, 6.000000}},
    {0.7, {5, 3, 4, 1, 2, 0}, {5.737163, 6.630329, 7.475474, 8.271991, 8.906457, 9.296409}},
    {5.0, {5, 3, 4, 2, 1, 0}, {9.718991, 14.756499, 19.564684, 23.482300, 26.779196, 29.545777}},
};

TEST(FacilityLocationPlain, PublishedOrdersValuesAndGains) {
  for (const auto& [lambda, order, value] : kPublishedRuns) {
    const std::vector<float> modular = scaled_alignment(lambda);
    const Plain got = plain(published_features(), 6, Similarity::kAffine, modular);
    EXPECT_EQ(got.picks, order) << "lambda " << lambda;
    const Objective objective(published_features(), Similarity::kAffine, 1.0, {modular.begin(), modular.end()});
    double sum = 0.0;
    for (size_t i = 0; i < 6; ++i) {
      sum += got.gains[i];
      EXPECT_NEAR(sum, value[i], 1e-5);
      EXPECT_NEAR(objective.of({order.begin(), order.begin() + static_cast<int64_t>(i) + 1}), value[i], 1e-5);
    }
  }
  const std::vector<float> modular = scaled_alignment(0.7);
  const Objective objective(published_features(), Similarity::kAffine, 1.0, {modular.begin(), modular.end()});
  const std::vector<double> first = {4.672510, 4.822157, 4.778357, 5.322978, 4.733821, 5.737163};
  const std::vector<double> second = {0.776372, 0.796517, 0.745791, 0.893165, 0.856471};
  for (int64_t j = 0; j < 6; ++j) EXPECT_NEAR(objective.of({j}), first[j], 1e-5);
  for (int64_t j = 0; j < 5; ++j) EXPECT_NEAR(objective.of({5, j}) - objective.of({5}), second[j], 1e-5);
  EXPECT_NEAR(objective.brute_force(2), 6.682786, 1e-5);
  EXPECT_NEAR(objective.brute_force(3), 7.527932, 1e-5);
  EXPECT_NEAR(objective.brute_force(4), objective.of({5, 3, 4, 1}), 1e-9);
}

// Invariants 3 and 4 on random sets.
TEST(FacilityLocationPlain, IsMonotoneSubmodularAndNearTheOptimum) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const at::Tensor x = random_tensor({9, 4}, at::kFloat, seed);
    std::vector<float> modular(9);
    for (size_t i = 0; i < 9; ++i) modular[i] = 0.05F * static_cast<float>((i * 7 + seed) % 9);
    const Plain got = plain(x, 9, Similarity::kAffine, modular);
    const Objective objective(x, Similarity::kAffine, 1.0, {modular.begin(), modular.end()});
    double value = 0.0;
    for (int64_t k = 0; k < 9; ++k) {
      EXPECT_GE(got.gains[k], 0.0);
      EXPECT_LE(got.gains[k], got.gains[std::max<int64_t>(k - 1, 0)] + 1e-9);
      value += got.gains[k];
      EXPECT_GE(value, (1.0 - std::exp(-1.0)) * objective.brute_force(k + 1));
    }
    EXPECT_NEAR(value, 9.0 + std::accumulate(modular.begin(), modular.end(), 0.0), 1e-6);
  }
}

class FacilityLocationTest : public DeviceTest {
 protected:
  static std::vector<int64_t> greedy(const at::Tensor& features, const std::vector<int64_t>& begin,
                                     const std::vector<int64_t>& num_kept, Similarity similarity = Similarity::kAffine,
                                     double coverage_scale = 1.0, const ops::OptionalTensor& modular = {},
                                     const ops::OptionalTensor& forced = {}) {
    ops::OptionalTensor modular_there, forced_there;
    if (modular.has_value()) modular_there = modular->to(device());
    if (forced.has_value()) forced_there = forced->to(device());
    const at::Tensor out =
        ops::facility_location_greedy(features.to(device()), int64_tensor(begin), int64_tensor(num_kept), similarity,
                                      coverage_scale, modular_there, forced_there);
    EXPECT_EQ(out.scalar_type(), at::kLong);
    EXPECT_EQ(out.device().type(), device().type());
    const at::Tensor here = out.to(at::kCPU);
    return {here.const_data_ptr<int64_t>(), here.const_data_ptr<int64_t>() + here.numel()};
  }

  // Equal orders, or parted by a near-tie: then both choices must have given the same value there.
  static void expect_order(const std::vector<int64_t>& got, const std::vector<int64_t>& expected,
                           const Objective& objective) {
    ASSERT_EQ(got.size(), expected.size());
    const auto [mine, theirs] = std::mismatch(got.begin(), got.end(), expected.begin());
    if (mine == got.end()) return;
    EXPECT_NEAR(objective.of({got.begin(), mine + 1}), objective.of({expected.begin(), theirs + 1}), 1e-4)
        << "parted at pick " << mine - got.begin() << ": " << *mine << " instead of " << *theirs;
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, FacilityLocationTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(FacilityLocationTest, PublishedOrders) {
  if (dtype() != at::kFloat) GTEST_SKIP() << "the vector is given in decimals";
  for (const auto& [lambda, order, value] : kPublishedRuns) {
    const at::Tensor modular = at::tensor(at::ArrayRef<float>(scaled_alignment(lambda)));
    EXPECT_EQ(greedy(published_features(), {0, 6}, {6}, Similarity::kAffine, 1.0, modular), order)
        << "lambda " << lambda;
    EXPECT_EQ(greedy(published_features(), {0, 6}, {3}, Similarity::kAffine, 1.0, modular),
              (std::vector<int64_t>{order.begin(), order.begin() + 3}));
  }
}

// Invariant 5: the order of the plain loop in float64.
TEST_P(FacilityLocationTest, OrderOfThePlainLoop) {
  for (const auto& [size, d] :
       std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {2, 3}, {17, 8}, {48, 33}, {49, 64}, {130, 20}, {200, 300}}) {
    const at::Tensor x = random_tensor({size, d}, dtype(), static_cast<uint64_t>(size));
    const at::Tensor modular = random_tensor({size}, at::kFloat, 5) * 0.3;
    const std::vector<double> terms = to_doubles(modular);
    const std::vector<float> terms32(terms.begin(), terms.end());
    for (const Similarity similarity : {Similarity::kAffine, Similarity::kClamp, Similarity::kMinmax}) {
      for (const double scale : {1.0, 1.0 / static_cast<double>(size)}) {
        SCOPED_TRACE(testing::Message() << size << " x " << d << ", similarity " << static_cast<int>(similarity)
                                        << ", scale " << scale);
        expect_order(greedy(x, {0, size}, {size}, similarity, scale), plain(x, size, similarity, {}, scale).picks,
                     Objective(x, similarity, scale));
        expect_order(greedy(x, {0, size}, {size}, similarity, scale, modular),
                     plain(x, size, similarity, terms32, scale).picks, Objective(x, similarity, scale, terms));
      }
    }
  }
}

// More rows than a thread block has threads, on CUDA: several share the work; and beside a small image. Six rows are
// there twice, far apart, so that the lower index decides.
TEST_P(FacilityLocationTest, MoreRowsThanThreadsOfABlock) {
  if (dtype() != at::kFloat) GTEST_SKIP() << "16-bit features are widened before the choice";
  for (const auto& [size, num_kept] : std::vector<std::pair<int64_t, int64_t>>{{1025, 12}, {1500, 30}, {2100, 6}}) {
    SCOPED_TRACE(size);
    at::Tensor x = random_tensor({size + 30, 12}, dtype(), static_cast<uint64_t>(size));
    x.slice(0, size - 6, size).copy_(x.slice(0, 0, 6));
    const std::vector<int64_t> picks = greedy(x, {0, size, size + 30}, {num_kept, 30}, Similarity::kClamp);
    const at::Tensor image = x.slice(0, 0, size);
    expect_order({picks.begin(), picks.begin() + num_kept}, plain(image, num_kept, Similarity::kClamp).picks,
                 Objective(image, Similarity::kClamp));
    std::vector<int64_t> alone = greedy(x.slice(0, size, size + 30), {0, 30}, {30}, Similarity::kClamp);
    for (int64_t& i : alone) i += size;
    EXPECT_EQ(std::vector<int64_t>(picks.begin() + num_kept, picks.end()), alone);
  }
}

// Invariants 1 and 2, blocks of sizes 0 and 1 among them; numbers count from the start of all features.
TEST_P(FacilityLocationTest, BlocksAreIndependentAndPicksArePrefixes) {
  const at::Tensor x = random({400, 24}, 1);
  const std::vector<int64_t> begin = {0, 100, 100, 101, 350, 400}, all = {100, 0, 1, 249, 50}, some = {37, 0, 1, 0, 20};
  const std::vector<int64_t> long_order = greedy(x, begin, all), short_order = greedy(x, begin, some);
  std::vector<int64_t> expected;
  for (size_t b = 0; b < all.size(); ++b) {
    const std::vector<int64_t> block(long_order.begin() + begin[b], long_order.begin() + begin[b + 1]);
    std::vector<int64_t> sorted = block;
    std::sort(sorted.begin(), sorted.end());
    for (int64_t i = 0; i < all[b]; ++i) EXPECT_EQ(sorted[i], begin[b] + i);
    expected.insert(expected.end(), block.begin(), block.begin() + some[b]);
    std::vector<int64_t> alone = greedy(x.slice(0, begin[b], begin[b + 1]), {0, all[b]}, {all[b]});
    for (int64_t& i : alone) i += begin[b];
    EXPECT_EQ(alone, block);
  }
  EXPECT_EQ(short_order, expected);
  EXPECT_TRUE(greedy(x, {0}, {}).empty());
  EXPECT_TRUE(greedy(x.slice(0, 0, 0), {0, 0}, {0}).empty());
  EXPECT_EQ(greedy(x, {350, 400}, {20}), std::vector<int64_t>(expected.end() - 20, expected.end()));
}

// Invariant 6. Powers of two scale without rounding.
TEST_P(FacilityLocationTest, RowScaleDoesNotCountAndPermutationFollows) {
  const at::Tensor x = random({90, 40}, 2);
  const std::vector<int64_t> order = greedy(x, {0, 90}, {60});
  const at::Tensor scales = at::full({90, 1}, 4.0F, x.options());
  scales.slice(0, 10, 50).fill_(0.25);
  EXPECT_EQ(greedy(x * scales, {0, 90}, {60}), order);
  std::vector<int64_t> reversed = greedy(x.flip({0}), {0, 90}, {60});
  for (int64_t& i : reversed) i = 89 - i;
  expect_order(reversed, order, Objective(x, Similarity::kAffine));
}

// Invariant 7.
TEST_P(FacilityLocationTest, LargeModularTermsDecideAlone) {
  const at::Tensor x = random({70, 10}, 3), modular = random_tensor({70}, at::kFloat, 4) * 1e6;
  const at::Tensor ranked = modular.argsort(-1, true);
  EXPECT_EQ(greedy(x, {0, 70}, {20}, Similarity::kAffine, 1.0, modular),
            std::vector<int64_t>(ranked.const_data_ptr<int64_t>(), ranked.const_data_ptr<int64_t>() + 20));
  EXPECT_EQ(greedy(x, {0, 70}, {20}, Similarity::kAffine, 1.0, at::zeros({70})), greedy(x, {0, 70}, {20}));
}

// Invariant 8: second copies have gain exactly 0, wait for every first copy, and then come in index order.
TEST_P(FacilityLocationTest, DuplicatesComeLastInIndexOrder) {
  for (const int64_t size : {7, 50, 150}) {
    const at::Tensor x = random({size, 31}, 5);
    const std::vector<int64_t> order = greedy(at::cat({x, x}), {0, 2 * size}, {2 * size});
    std::vector<int64_t> firsts(order.begin(), order.begin() + size);
    std::sort(firsts.begin(), firsts.end());
    for (int64_t i = 0; i < size; ++i) {
      EXPECT_EQ(firsts[i], i);
      EXPECT_EQ(order[size + i], size + i);
    }
  }
}

TEST_P(FacilityLocationTest, EqualRowsComeInIndexOrder) {
  std::vector<int64_t> expected(100);
  std::iota(expected.begin(), expected.end(), 0);
  const at::Tensor row = random({1, 77}, 6);
  for (const Similarity similarity : {Similarity::kAffine, Similarity::kClamp, Similarity::kMinmax}) {
    EXPECT_EQ(greedy(row.expand({100, 77}), {0, 100}, {100}, similarity), expected);
    EXPECT_EQ(greedy((row * 0.0).expand({100, 77}), {0, 100}, {100}, similarity),
              expected);  // rows without a direction
  }
}

TEST_P(FacilityLocationTest, ForcedRowsComeFirst) {
  const at::Tensor x = random({80, 12}, 7);
  const at::Tensor forced = at::zeros({80}, at::kBool);
  for (const int64_t i : {3, 41, 40, 79}) forced[i] = true;
  const std::vector<int64_t> order = greedy(x, {0, 50, 80}, {30, 10}, Similarity::kAffine, 1.0, {}, forced);
  EXPECT_EQ(std::vector<int64_t>(order.begin(), order.begin() + 3), (std::vector<int64_t>{3, 40, 41}));
  EXPECT_EQ(order[30], 79);
  // What is picked next is the best beside the forced ones.
  const Objective objective(x.slice(0, 0, 50), Similarity::kAffine);
  double best = 0.0;
  for (int64_t j = 0; j < 50; ++j) best = std::max(best, objective.of({3, 40, 41, j}));
  EXPECT_NEAR(objective.of({3, 40, 41, order[3]}), best, 1e-4);
  EXPECT_EQ(greedy(x, {0, 50}, {2}, Similarity::kAffine, 1.0, {}, forced), (std::vector<int64_t>{3, 40}));
}

// One image of a real size, more than one batch of matrices, NaN: no crash, every row once.
TEST_P(FacilityLocationTest, ManyRowsAndNaN) {
  at::Tensor x = random({1300, 64}, 8);
  x[5].fill_(NAN);
  for (const Similarity similarity : {Similarity::kAffine, Similarity::kMinmax}) {
    std::vector<int64_t> order = greedy(x, {0, 1000, 1300}, {1000, 300}, similarity);
    std::sort(order.begin(), order.end());
    for (int64_t i = 0; i < 1300; ++i) ASSERT_EQ(order[i], i);
  }
  const at::Tensor modular = at::full({20}, NAN);
  std::vector<int64_t> order = greedy(x.slice(0, 10, 30), {0, 20}, {20}, Similarity::kAffine, 1.0, modular);
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(order[i], i);
}

TEST_P(FacilityLocationTest, StridedFeatures) {
  const at::Tensor x = random({60, 100}, 9);
  EXPECT_EQ(greedy(x.slice(1, 3, 44), {0, 60}, {60}), greedy(x.slice(1, 3, 44).clone(), {0, 60}, {60}));
  EXPECT_EQ(greedy(x.slice(1, 0, 100, 2), {0, 60}, {60}), greedy(x.slice(1, 0, 100, 2).clone(), {0, 60}, {60}));
}

TEST(FacilityLocationLevels, PlainPathAgrees) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor x = random_tensor({150, 51}, dtype, 3);
    std::vector<std::vector<int64_t>> orders;
    for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
      std::vector<int64_t> picks(150);
      const kernels::CoverageBlock block{0, 150, 150, {}, picks.data()};
      kernels::facility_location_greedy_blocked({x.const_data_ptr(), 51, 51, kernels::element_type(x, "test")}, &block,
                                                1, level);
      orders.push_back(picks);
    }
    const Objective objective(x, Similarity::kAffine);
    const auto [mine, theirs] = std::mismatch(orders[0].begin(), orders[0].end(), orders[1].begin());
    if (mine == orders[0].end()) continue;
    EXPECT_NEAR(objective.of({orders[0].begin(), mine + 1}), objective.of({orders[1].begin(), theirs + 1}), 1e-4);
  }
}

TEST(FacilityLocationArguments, WrongOnesThrow) {
  const at::Tensor x = random_tensor({10, 4});
  const auto call = [](const at::Tensor& features, std::vector<int64_t> begin, std::vector<int64_t> num_kept,
                       const ops::OptionalTensor& modular = {}, const ops::OptionalTensor& forced = {}) {
    return ops::facility_location_greedy(features, int64_tensor(begin), int64_tensor(num_kept), Similarity::kAffine,
                                         1.0, modular, forced);
  };
  EXPECT_NO_THROW(call(x, {0, 10}, {10}));
  EXPECT_THROW(call(x, {0, 10}, {11}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {-1}), c10::Error);
  EXPECT_THROW(call(x, {0, 11}, {3}), c10::Error);
  EXPECT_THROW(call(x, {0, 6, 4}, {3, 1}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3, 1}), c10::Error);
  EXPECT_THROW(call(x.view({40}), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x.to(at::kDouble), {0, 10}, {3}), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3}, at::zeros({9})), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3}, at::zeros({10}, at::kDouble)), c10::Error);
  EXPECT_THROW(call(x, {0, 10}, {3}, {}, at::zeros({10})), c10::Error);
  const at::Tensor meta = at::empty({10, 4}, at::TensorOptions().device(at::kMeta));
  EXPECT_EQ(call(meta, {0, 4, 10}, {2, 5}).size(0), 7);
}

}  // namespace
}  // namespace espalier::test
