// SPDX-License-Identifier: Apache-2.0
// The ops as other programs reach them: by name through the dispatcher. A registration that the linker dropped, a
// schema that does not fit its kernel, or a check that inference tensors slip past, fails here.
#include "tests/support/dispatch.h"

#include <c10/core/InferenceMode.h>

#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

class DispatchTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, DispatchTest, testing::ValuesIn(all_devices()), device_dtype_name);

TEST_P(DispatchTest, EveryOpIsFoundByName) {
  const at::Tensor x = random({6, 4, 8}, 1);
  const at::Tensor y = random({6, 4, 8}, 2);
  const at::Tensor table = random({6, 8}, 3);
  const at::Tensor weight = random({8}, 4);
  const at::Tensor index = int64_tensor({5, 0}).to(device());
  const at::Tensor scores = random({6}, 5);
  const at::Tensor begin = int64_tensor({0, 6});
  const at::Tensor num_kept = int64_tensor({2});

  expect_same(call_op("rms_norm", {x, weight, 1e-5}).at(0).toTensor(), ops::rms_norm(x, weight, 1e-5));
  expect_same(call_op("silu_mul", {x, y}).at(0).toTensor(), ops::silu_mul(x, y));
  expect_same(call_op("gather_rows", {x, index}).at(0).toTensor(), ops::gather_rows(x, index));
  expect_same(call_op("topk_sorted", {scores, begin, num_kept}).at(0).toTensor(),
              ops::topk_sorted(scores, begin, num_kept));
  const auto [query, key] = ops::rope(x, y, table, table);
  const auto turned = call_op("rope", {x, y, table, table});
  expect_same(turned.at(0).toTensor(), query);
  expect_same(turned.at(1).toTensor(), key);
  const auto [kept_key, kept_value] = ops::compact_kv(x, y, index);
  const auto kept = call_op("compact_kv", {x, y, index});
  expect_same(kept.at(0).toTensor(), kept_key);
  expect_same(kept.at(1).toTensor(), kept_value);
}

// Inference tensors carry no autograd keys: the dispatcher goes straight to the backend, which must check for itself.
TEST_P(DispatchTest, ChecksHoldInInferenceMode) {
  const c10::InferenceMode inference;
  const at::Tensor x = random({6, 4, 8});
  const at::Tensor index = int64_tensor({0}).to(device());
  EXPECT_THROW(call_op("rms_norm", {x, random({7}), 1e-5}), c10::Error);
  EXPECT_THROW(call_op("silu_mul", {x, random({6, 4, 7})}), c10::Error);
  EXPECT_THROW(call_op("rope", {x, x, random({6, 4}), random({6, 4})}), c10::Error);
  EXPECT_THROW(call_op("gather_rows", {x, index.to(at::kInt)}), c10::Error);
  EXPECT_THROW(call_op("compact_kv", {x, random({5, 4, 8}), index}), c10::Error);
  EXPECT_THROW(call_op("topk_sorted", {random({6}), int64_tensor({0, 7}), int64_tensor({7})}), c10::Error);
}

// Meta tensors give the shapes without computing (tracing and compiling programs need it).
TEST(Dispatch, MetaGivesTheShapes) {
  const auto meta = [](at::IntArrayRef sizes) { return random_tensor(sizes).to(at::kMeta); };
  const at::Tensor index = int64_tensor({5, 0, 1}).to(at::kMeta);
  EXPECT_EQ(ops::rms_norm(meta({6, 8}), meta({8}), 1e-5).sizes(), (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(ops::silu_mul(meta({6, 8}), meta({6, 8})).sizes(), (std::vector<int64_t>{6, 8}));
  EXPECT_EQ(ops::gather_rows(meta({6, 8}), index).sizes(), (std::vector<int64_t>{3, 8}));
  EXPECT_EQ(std::get<1>(ops::rope(meta({6, 4, 8}), meta({6, 2, 8}), meta({6, 8}), meta({6, 8}))).sizes(),
            (std::vector<int64_t>{6, 2, 8}));
  EXPECT_EQ(std::get<0>(ops::compact_kv(meta({6, 4, 8}), meta({6, 4, 8}), index)).sizes(),
            (std::vector<int64_t>{3, 4, 8}));
  EXPECT_EQ(ops::topk_sorted(meta({6}), int64_tensor({0, 6}), int64_tensor({2})).sizes(), (std::vector<int64_t>{2}));
}

}  // namespace
}  // namespace espalier::test
