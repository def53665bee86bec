// SPDX-License-Identifier: Apache-2.0
// The packed cache against lists of rows.
#include "runtime/kv_cache.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/tensors.h"

namespace espalier {
namespace {

using test::int64_tensor;
using test::random_tensor;

// What each sequence should hold.
struct Rows {
  std::vector<at::Tensor> key, value, position;
};

class CacheWithModel {
 public:
  CacheWithModel(const std::vector<int64_t>& lengths, bool with_positions)
      : rows_(lengths.size()), with_positions_(with_positions) {
    int64_t n = 0;
    for (const int64_t length : lengths) n += length;
    const at::Tensor key = random_tensor({n, 2, 3}, at::kFloat, 1), value = random_tensor({n, 2, 3}, at::kFloat, 2);
    cache.set(key, value, lengths);
    std::vector<int64_t> positions;
    int64_t row = 0;
    for (size_t s = 0; s < lengths.size(); ++s)
      for (int64_t i = 0; i < lengths[s]; ++i, ++row) {
        positions.push_back(100 * static_cast<int64_t>(s) + i);
        push(s, key[row], value[row], positions.back());
      }
    if (with_positions) cache.set_positions(int64_tensor(positions));
  }

  void append(const std::vector<size_t>& sequences, int64_t step) {
    const int64_t n = std::ssize(sequences);
    const at::Tensor key = random_tensor({n, 2, 3}, at::kFloat, 1000 + step),
                     value = random_tensor({n, 2, 3}, at::kFloat, 5000 + step);
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < n; ++i) {
      positions.push_back(7 * step + i);
      push(sequences[i], key[i], value[i], positions.back());
    }
    cache.append(sequences, key, value, int64_tensor(positions));
  }

  void replace(size_t s, const std::vector<int64_t>& kept) {
    Rows left;
    for (const int64_t i : kept) {
      left.key.push_back(rows_[s].key[i]);
      left.value.push_back(rows_[s].value[i]);
      left.position.push_back(rows_[s].position[i]);
    }
    rows_[s] = left;
    cache.replace(s, at::stack(left.key), at::stack(left.value),
                  with_positions_ ? at::stack(left.position) : at::Tensor());
  }

  void expect_holds() const {
    int64_t total = 0;
    for (size_t s = 0; s < rows_.size(); ++s) {
      const int64_t n = std::ssize(rows_[s].key);
      total += n;
      ASSERT_EQ(cache.length(s), n) << s;
      const int64_t begin = cache.begins({s}).item<int64_t>();
      ASSERT_EQ(cache.lengths({s}).item<int64_t>(), n);
      for (int64_t i = 0; i < n; ++i) {
        ASSERT_TRUE(cache.key()[begin + i].equal(rows_[s].key[i])) << s << " " << i;
        ASSERT_TRUE(cache.value()[begin + i].equal(rows_[s].value[i])) << s << " " << i;
        if (!with_positions_) continue;
        ASSERT_EQ(cache.position_id()[begin + i].item<int64_t>(), rows_[s].position[i].item<int64_t>());
      }
    }
    EXPECT_EQ(cache.bytes(), total * 2 * 2 * 3 * 4);
  }

  LayerCache cache;

 private:
  void push(size_t s, const at::Tensor& key, const at::Tensor& value, int64_t position) {
    rows_[s].key.push_back(key.clone());
    rows_[s].value.push_back(value.clone());
    rows_[s].position.push_back(int64_tensor({position}).squeeze(0));
  }
  std::vector<Rows> rows_;
  bool with_positions_;
};

class KvCacheTest : public testing::TestWithParam<bool> {};

TEST_P(KvCacheTest, HoldsAPrefill) {
  const CacheWithModel model({3, 1, 5}, GetParam());
  model.expect_holds();
  EXPECT_TRUE(model.cache.begins({2, 0}).equal(int64_tensor({4, 0})));
  EXPECT_TRUE(model.cache.lengths({2, 0}).equal(int64_tensor({5, 3})));
}

// Hundreds of steps, in which sequences leave: every reallocation moves every row.
TEST_P(KvCacheTest, GrowsTokenByToken) {
  CacheWithModel model({3, 1, 5}, GetParam());
  for (int64_t step = 0; step < 300; ++step) {
    std::vector<size_t> active = {0, 1, 2};
    if (step > 50) active = {2, 0};
    if (step > 170) active = {1};
    model.append(active, step);
    if (step % 23 == 0) model.expect_holds();
  }
  model.expect_holds();
}

TEST_P(KvCacheTest, ReplacedRowsLeaveTheOthersAlone) {
  CacheWithModel model({4, 6, 2}, GetParam());
  model.replace(1, {0, 3, 5});
  model.expect_holds();
  model.append({0, 1, 2}, 1);
  model.expect_holds();
  model.replace(0, {4});
  model.append({1}, 2);
  model.append({0, 2}, 3);
  model.expect_holds();
}

INSTANTIATE_TEST_SUITE_P(Positions, KvCacheTest, testing::Bool());

// Rows between sequences belong to nobody: a sequence cut to nothing still grows again.
TEST(KvCache, ASequenceWithoutRows) {
  LayerCache cache;
  cache.set(random_tensor({3, 1, 2}), random_tensor({3, 1, 2}), {3, 0});
  EXPECT_EQ(cache.length(1), 0);
  const at::Tensor row = random_tensor({1, 1, 2}, at::kFloat, 4);
  cache.append({1}, row, row, int64_tensor({0}));
  EXPECT_EQ(cache.length(1), 1);
  EXPECT_TRUE(cache.key()[cache.begins({1}).item<int64_t>()].equal(row[0]));
}

}  // namespace
}  // namespace espalier
