// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/compact_kv/compact_kv.h"
#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

// index [k] or [g, k]; x [n, g, d].
std::vector<double> oracle(const at::Tensor& x, const at::Tensor& index) {
  const int64_t g = x.size(1);
  const int64_t d = x.size(2);
  const int64_t k = index.size(-1);
  const std::vector<double> in = to_doubles(x);
  const std::vector<double> rows = to_doubles(index);
  std::vector<double> out;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t h = 0; h < g; ++h) {
      const auto row = static_cast<int64_t>(rows[(index.dim() == 1 ? 0 : h * k) + i]);
      for (int64_t j = 0; j < d; ++j) out.push_back(in[(row * g + h) * d + j]);
    }
  return out;
}

at::Tensor some_rows(at::IntArrayRef sizes, int64_t n) {
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < c10::multiply_integers(sizes); ++i) rows.push_back((i * 7919 + 3) % n);
  return int64_tensor(rows).view(sizes);
}

class CompactKvTest : public DeviceTest {
 protected:
  static void expect_compacts(const at::Tensor& key, const at::Tensor& value, const at::Tensor& index) {
    const auto [k, v] = ops::compact_kv(key, value, index.to(device()));
    EXPECT_EQ(k.sizes(), (std::vector<int64_t>{index.size(-1), key.size(1), key.size(2)}));
    EXPECT_TRUE(k.is_contiguous() && v.is_contiguous());
    expect_close(k, oracle(key, index), 0.0, "key");
    expect_close(v, oracle(value, index), 0.0, "value");
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, CompactKvTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(CompactKvTest, KeepsRows) {
  for (const int64_t g : {1, 3, 8})
    for (const int64_t d : {1, 5, 64, 128})
      for (const int64_t k : {0, 1, 6, 450}) {
        const at::Tensor key = random({211, g, d}, 1);
        const at::Tensor value = random({211, g, d}, 2);
        expect_compacts(key, value, some_rows({k}, 211));
        expect_compacts(key, value, some_rows({g, k}, 211));
      }
}

TEST_P(CompactKvTest, TakesStridedViews) {
  const at::Tensor fused = random({7, 9, 12}, 3);
  for (const at::Tensor& index : {some_rows({4}, 7), some_rows({3, 4}, 7), some_rows({4, 3}, 7).t()}) {
    expect_compacts(fused.narrow(1, 0, 3), fused.narrow(1, 3, 3), index);
    expect_compacts(fused.narrow(1, 0, 3).narrow(2, 1, 5), fused.narrow(1, 3, 3).narrow(2, 0, 5), index);
    expect_compacts(random({3, 7, 4}, 4).transpose(0, 1), random({7, 4, 3}, 5).transpose(1, 2), index);
  }
}

TEST_P(CompactKvTest, WrongArgumentsThrow) {
  const at::Tensor key = random({6, 2, 4});
  const at::Tensor index = int64_tensor({0, 1}).to(device());
  EXPECT_THROW(ops::compact_kv(key, random({6, 2, 5}), index), c10::Error);
  EXPECT_THROW(ops::compact_kv(key, key.to(at::kDouble), index), c10::Error);
  EXPECT_THROW(ops::compact_kv(key.select(0, 0), key.select(0, 0), index), c10::Error);
  EXPECT_THROW(ops::compact_kv(key, key, index.to(at::kInt)), c10::Error);
  EXPECT_THROW(ops::compact_kv(key, key, index.unsqueeze(0)), c10::Error);
}

TEST(CompactKv, RowsThatDoNotExistThrow) {
  const at::Tensor key = random_tensor({6, 2, 4});
  for (const int64_t row : {-1, 6}) {
    EXPECT_THROW(ops::compact_kv(key, key, int64_tensor({0, row})), c10::Error);
    EXPECT_THROW(ops::compact_kv(key, key, int64_tensor({0, 1, 2, row}).view({2, 2})), c10::Error);
  }
}

}  // namespace
}  // namespace espalier::test
