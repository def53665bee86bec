// SPDX-License-Identifier: Apache-2.0
// One row per sequence against plain loops in float64, over caches with slack rows that must not be read.
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

struct Cache {
  int64_t heads, kv_heads, d;
  std::vector<int64_t> begin, length;  // of each sequence
  int64_t rows;
  int64_t window = 0;
};

// -inf of a row without keys exactly; else float32's sums, of inputs that the oracle has exactly too.
void expect_lse(const std::vector<double>& actual, const std::vector<double>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isinf(expected[i]))
      EXPECT_EQ(actual[i], expected[i]) << i;
    else
      EXPECT_NEAR(actual[i], expected[i], 2e-5 * (1 + std::abs(expected[i]))) << i;
  }
}

class AttentionDecodeTest : public DeviceTest {
 protected:
  // Keys outside of every sequence are NaN: reading one of them shows.
  static at::Tensor cache_rows(const Cache& c, uint64_t seed) {
    const at::Tensor t = random_tensor({c.rows, c.kv_heads, c.d}, dtype(), seed);
    std::vector<bool> is_used(c.rows);
    for (size_t s = 0; s < c.begin.size(); ++s)
      for (int64_t i = 0; i < c.length[s]; ++i) is_used[c.begin[s] + i] = true;
    for (int64_t row = 0; row < c.rows; ++row)
      if (!is_used[row]) t.select(0, row).fill_(std::numeric_limits<double>::quiet_NaN());
    return t;
  }

  // Positions ascend by two and restart nowhere: a window of w positions is w / 2 keys.
  static at::Tensor key_positions(const Cache& c) {
    std::vector<int64_t> positions(c.rows);
    for (int64_t row = 0; row < c.rows; ++row) positions[row] = 2 * row;
    return int64_tensor(positions);
  }
  static at::Tensor query_positions(const Cache& c) {
    std::vector<int64_t> positions;
    for (size_t s = 0; s < c.begin.size(); ++s) positions.push_back(2 * (c.begin[s] + c.length[s] - 1));
    return int64_tensor(positions);
  }

  static void expect_right(const Cache& c, int64_t slack_of_bound = 0, bool is_strided = false) {
    const auto b = static_cast<int64_t>(c.begin.size());
    const double scale = 1.3 / std::sqrt(static_cast<double>(c.d));
    const at::Tensor query = random_tensor({b, c.heads, c.d}, dtype(), 1), key = cache_rows(c, 2),
                     value = cache_rows(c, 3);
    const std::vector<double> q = to_doubles(query), k = to_doubles(key), v = to_doubles(value);
    std::vector<double> expected, expected_lse(c.heads * b);
    int64_t longest = 0;
    for (int64_t s = 0; s < b; ++s) {
      longest = std::max(longest, c.length[s]);
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t g = h / (c.heads / c.kv_heads);
        std::vector<double> sum(c.d, 0.0);
        double mass = 0;
        const int64_t unseen = c.window > 0 ? std::max<int64_t>(0, c.length[s] - (c.window + 1) / 2) : 0;
        for (int64_t i = c.begin[s] + unseen; i < c.begin[s] + c.length[s]; ++i) {
          double dot = 0;
          for (int64_t j = 0; j < c.d; ++j) dot += q[(s * c.heads + h) * c.d + j] * k[(i * c.kv_heads + g) * c.d + j];
          const double weight = std::exp(dot * scale);
          mass += weight;
          for (int64_t j = 0; j < c.d; ++j) sum[j] += weight * v[(i * c.kv_heads + g) * c.d + j];
        }
        for (const double x : sum) expected.push_back(mass > 0 ? x / mass : 0.0);
        expected_lse[h * b + s] = std::log(mass);
      }
    }
    const auto placed = [&](const at::Tensor& t) {
      const at::Tensor there = t.to(device());
      return is_strided ? there.transpose(0, 1).contiguous().transpose(0, 1) : there;
    };
    ops::OptionalTensor query_position, key_position;
    if (c.window > 0) {
      query_position = query_positions(c).to(device());
      key_position = key_positions(c).to(device());
    }
    const auto [actual, lse] = ops::attention_decode({.query = placed(query),
                                                      .key = placed(key),
                                                      .value = placed(value),
                                                      .key_begin = int64_tensor(c.begin).to(device()),
                                                      .key_length = int64_tensor(c.length).to(device()),
                                                      .max_length = longest + slack_of_bound,
                                                      .scale = scale,
                                                      .window = c.window,
                                                      .query_position = query_position,
                                                      .key_position = key_position});
    EXPECT_EQ(actual.scalar_type(), dtype());
    expect_close(actual, expected, tolerance());
    EXPECT_EQ(lse.scalar_type(), at::kFloat);
    EXPECT_EQ(lse.sizes(), at::IntArrayRef({c.heads, b}));
    expect_lse(to_doubles(lse), expected_lse);
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, AttentionDecodeTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(AttentionDecodeTest, MatchesTheFormula) {
  expect_right({.heads = 4, .kv_heads = 4, .d = 64, .begin = {3, 200, 90}, .length = {80, 700, 1}, .rows = 1000});
  expect_right({.heads = 8, .kv_heads = 2, .d = 128, .begin = {0, 300}, .length = {257, 128}, .rows = 450});
}

// Heads a KV head, and widths: each has a kernel or a remainder of its own on CUDA.
TEST_P(AttentionDecodeTest, TakesEveryGroupingAndWidth) {
  for (const int64_t ratio : {1, 2, 3, 7, 8, 14})
    expect_right({.heads = 2 * ratio, .kv_heads = 2, .d = 64, .begin = {5, 160}, .length = {140, 33}, .rows = 200});
  for (const int64_t d : {8, 40, 80, 96, 256, 300})
    expect_right({.heads = 6, .kv_heads = 2, .d = d, .begin = {5, 160}, .length = {140, 33}, .rows = 200});
}

TEST_P(AttentionDecodeTest, SeesAWindowOfPositions) {
  for (const int64_t window : {1, 2, 60, 300, 5000})
    expect_right(
        {.heads = 4, .kv_heads = 2, .d = 32, .begin = {2, 150}, .length = {140, 260}, .rows = 420, .window = window});
}

// The bound is what a recorded launch was made for; lengths below it, down to nothing, must do.
TEST_P(AttentionDecodeTest, BoundMayBeFarAboveTheLengths) {
  expect_right({.heads = 4, .kv_heads = 2, .d = 64, .begin = {0, 40, 41}, .length = {40, 0, 9}, .rows = 60}, 2000);
  expect_right({.heads = 4, .kv_heads = 2, .d = 64, .begin = {}, .length = {}, .rows = 10}, 7);
  expect_right({.heads = 2, .kv_heads = 2, .d = 64, .begin = {4}, .length = {0}, .rows = 10});
}

TEST_P(AttentionDecodeTest, TakesStridedInputs) {
  expect_right({.heads = 4, .kv_heads = 2, .d = 64, .begin = {3, 200}, .length = {150, 30}, .rows = 240}, 0, true);
}

TEST_P(AttentionDecodeTest, RejectsWhatDoesNotFit) {
  const at::Tensor q = random({2, 4, 16}), k = random({30, 2, 16}), begin = int64_tensor({0, 10}).to(device()),
                   length = int64_tensor({10, 20}).to(device());
  const auto call = [&](const at::Tensor& query, const at::Tensor& key, const at::Tensor& begins,
                        const at::Tensor& lengths, int64_t bound, double scale, int64_t window) {
    return ops::attention_decode({query, key, key, begins, lengths, bound, scale, window});
  };
  EXPECT_NO_THROW(call(q, k, begin, length, 20, 0.25, 0));
  EXPECT_THROW(call(random({2, 3, 16}), k, begin, length, 20, 0.25, 0), c10::Error);
  EXPECT_THROW(call(q, random({30, 2, 8}), begin, length, 20, 0.25, 0), c10::Error);
  EXPECT_THROW(call(q, k, begin.slice(0, 1), length, 20, 0.25, 0), c10::Error);
  EXPECT_THROW(call(q, k, begin, length.to(at::kInt), 20, 0.25, 0), c10::Error);
  EXPECT_THROW(call(q, k, begin, length, -1, 0.25, 0), c10::Error);
  EXPECT_THROW(call(q, k, begin, length, 20, 0.0, 0), c10::Error);
  EXPECT_THROW(call(q, k, begin, length, 20, 0.25, 5), c10::Error);  // a window without positions
  EXPECT_THROW(call(q.to(at::kDouble), k.to(at::kDouble), begin, length, 20, 0.25, 0), c10::Error);
  if (device().is_cpu()) {
    EXPECT_THROW(call(q, k, begin, length, 19, 0.25, 0), c10::Error);  // a length above the bound
    EXPECT_THROW(call(q, k, int64_tensor({0, 11}), length, 20, 0.25, 0), c10::Error);
  } else {
    EXPECT_THROW(call(q, k, begin.cpu(), length, 20, 0.25, 0), c10::Error);
  }
}

// On the CPU it is attention's kernel, and the runtime counts on the very same bits.
TEST(AttentionDecode, HasAttentionsBits) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor q = random_tensor({2, 8, 64}, dtype, 1), k = random_tensor({900, 2, 64}, dtype, 2),
                     v = random_tensor({900, 2, 64}, dtype, 3);
    const at::Tensor begin = int64_tensor({0, 500}), length = int64_tensor({498, 390});
    const auto [output, lse] = ops::attention_decode({q, k, v, begin, length, 1024, 0.125});
    const auto [expected, expected_lse] = ops::attention({q, k, v, int64_tensor({0, 1, 2}), begin, length, 0.125});
    expect_same(output, expected);
    expect_same(lse, expected_lse);
  }
}

TEST(AttentionDecode, MetaGivesTheShape) {
  const auto meta = [](at::IntArrayRef sizes) { return random_tensor(sizes).to(at::kMeta); };
  const at::Tensor lengths = int64_tensor({1, 2}).to(at::kMeta);
  const auto [output, lse] =
      ops::attention_decode({meta({2, 4, 8}), meta({9, 2, 8}), meta({9, 2, 8}), lengths, lengths, 5});
  EXPECT_EQ(output.sizes(), (std::vector<int64_t>{2, 4, 8}));
  EXPECT_EQ(lse.sizes(), (std::vector<int64_t>{4, 2}));
}

}  // namespace
}  // namespace espalier::test
