// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/gather_rows/gather_rows.h"
#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

std::vector<double> oracle(const at::Tensor& x, const std::vector<int64_t>& index) {
  const std::vector<double> in = to_doubles(x);
  const auto width = x.size(0) == 0 ? 0 : x.numel() / x.size(0);
  std::vector<double> out;
  for (const int64_t row : index) out.insert(out.end(), in.begin() + row * width, in.begin() + (row + 1) * width);
  return out;
}

std::vector<int64_t> some_rows(int64_t count, int64_t n) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) rows[i] = (i * 7919 + 3) % n;
  return rows;
}

class GatherRowsTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, GatherRowsTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(GatherRowsTest, CopiesRows) {
  for (const int64_t width : {1, 3, 8, 17, 1024})
    for (const int64_t count : {0, 1, 5, 700}) {
      const at::Tensor x = random({601, width}, 1);
      const std::vector<int64_t> rows = some_rows(count, 601);
      const at::Tensor out = ops::gather_rows(x, int64_tensor(rows).to(device()));
      EXPECT_EQ(out.sizes(), (std::vector<int64_t>{count, width}));
      EXPECT_EQ(out.scalar_type(), dtype());
      expect_close(out, oracle(x, rows), 0.0);
    }
}

TEST_P(GatherRowsTest, TakesAnyRankAndStrides) {
  const std::vector<int64_t> rows{4, 0, 0, 3};
  const at::Tensor fused = random({5, 12, 8}, 2);
  for (const at::Tensor& x :
       {fused, fused.narrow(1, 4, 3), fused.narrow(2, 1, 3), fused.permute({0, 2, 1}), random({9, 5}, 3).t(),
        random({5}, 4), random({10, 6}, 5).narrow(0, 5, 5), random({1, 4}, 6).expand({5, 4}), random({5, 0}, 7)}) {
    const at::Tensor strided = int64_tensor({4, 9, 0, 9, 0, 9, 3, 9}).view({4, 2}).select(1, 0);
    const at::Tensor out = ops::gather_rows(x, strided.to(device()));
    EXPECT_TRUE(out.is_contiguous());
    expect_close(out, oracle(x, rows), 0.0);
  }
}

TEST_P(GatherRowsTest, WrongArgumentsThrow) {
  const at::Tensor x = random({4, 3});
  const at::Tensor index = int64_tensor({0, 1}).to(device());
  EXPECT_THROW(ops::gather_rows(x, index.to(at::kInt)), c10::Error);
  EXPECT_THROW(ops::gather_rows(x, index.unsqueeze(0)), c10::Error);
  EXPECT_THROW(ops::gather_rows(random({}), index), c10::Error);
}

TEST(GatherRows, OtherDtypes) {
  const at::Tensor x = int64_tensor({5, 6, 7});
  for (const at::ScalarType dtype : {at::kLong, at::kBool, at::kByte, at::kDouble, at::kInt})
    expect_same(ops::gather_rows(x.to(dtype), int64_tensor({2, 0})), int64_tensor({7, 5}).to(dtype));
}

TEST(GatherRows, RowsThatDoNotExistThrow) {
  const at::Tensor x = random_tensor({4, 3});
  for (const int64_t row : {-1, 4, 1 << 30}) {
    EXPECT_THROW(ops::gather_rows(x, int64_tensor({0, row})), c10::Error);
    EXPECT_THROW(ops::gather_rows(x.detach().set_requires_grad(true), int64_tensor({0, row})), c10::Error);
  }
  EXPECT_THROW(ops::gather_rows(random_tensor({0, 3}), int64_tensor({0})), c10::Error);
}

TEST(GatherRows, GradientsMatchFiniteDifferences) {
  const at::Tensor index = int64_tensor({2, 0, 2});
  const auto f = [&](const std::vector<at::Tensor>& in) { return std::vector{ops::gather_rows(in[0], index)}; };
  expect_gradients_match(f, {random_tensor({4, 3}, at::kDouble, 1)});
}

}  // namespace
}  // namespace espalier::test
