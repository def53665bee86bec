// SPDX-License-Identifier: Apache-2.0
#include "kernels/support/chosen_kernels.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "espalier/ops.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

using kernels::ChosenKernels;

std::map<std::string, std::string> chosen(const ChosenKernels& collected) {
  const auto list = collected.list();
  return {list.begin(), list.end()};
}

class ChosenKernelsTest : public DeviceTest {};
INSTANTIATE_TEST_SUITE_P(Devices, ChosenKernelsTest, testing::ValuesIn(all_devices()), device_dtype_name);

// An op that reports nothing would be missing from `--stats` without a word.
TEST_P(ChosenKernelsTest, EveryOpReports) {
  const at::Tensor x = random({6, 4, 8}, 1), rows = random({6, 8}, 2), weight = random({8}, 3);
  const at::Tensor index = int64_tensor({5, 0}).to(device()), some = int64_tensor({0, 1, 2}).to(device());
  const at::Tensor begin = int64_tensor({0, 6}), kept = int64_tensor({2}), one = int64_tensor({0, 1});
  const at::Tensor lse = at::zeros({4, 6}, x.options()), last = int64_tensor({5}).to(device());
  const ChosenKernels collected;
  ops::rms_norm(x, weight, 1e-5);
  ops::rope(x, x, rows, rows);
  ops::linear(rows, rows);
  ops::silu_mul(x, x);
  ops::attention({x, x, x, begin, int64_tensor({0}), int64_tensor({6})});
  ops::attention_decode({x.slice(0, 0, 2), x, x, index, int64_tensor({1, 2}).to(device()), 4});
  ops::merge_states(x, lse, x, lse);
  const ops::AttendedLayer layer{x, x, lse};
  ops::attention_probe({layer, last, one, some, int64_tensor({0, 3})});
  ops::attention_growth({layer, layer, last, one, some, int64_tensor({0, 3})});
  ops::cosine_score(rows, rows);
  ops::pairwise_cosine(rows, rows);
  ops::facility_location_greedy(rows, begin, kept, ops::Similarity::kAffine);
  ops::max_min_select(rows, begin, kept, ops::Distance::kCosine);
  ops::greedy_dpp(rows, random({6}, 4).abs(), begin, kept);
  ops::topk_sorted(random({6}, 5), begin, kept);
  ops::gather_rows(x, index);
  ops::merge_tokens(rows, index, int64_tensor({0, 2}).to(device()));
  ops::compact_kv(x, x, index);
  EXPECT_EQ(chosen(collected).size(), 18U);
  for (const auto& [op, kernel] : collected.list()) EXPECT_FALSE(kernel.empty()) << op;
}

TEST(ChosenKernels, NamesWhatRan) {
  const ChosenKernels collected;
  const std::string level(kernels::vector_kernel_name(kernels::cpu_level()));
  const std::string few_rows = level == "plain" ? "library" : level + "_rows";
  const at::Tensor weight = random_tensor({16, 32});
  ops::linear(random_tensor({1, 32}), weight);
  EXPECT_EQ(chosen(collected).at("linear"), few_rows);
  ops::linear(random_tensor({100, 32}), weight);
  EXPECT_EQ(chosen(collected).at("linear"), level == "plain" ? "library" : few_rows + " + library");
  ops::pairwise_cosine(weight, weight);
  EXPECT_EQ(chosen(collected).at("pairwise_cosine"), level == "avx512" ? "avx512_f32" : level);
}

TEST(ChosenKernels, EachThreadAndEachScopeHasItsOwn) {
  const at::Tensor x = random_tensor({4, 4});
  ops::linear(x, x);  // nobody collects
  const ChosenKernels outer;
  {
    const ChosenKernels inner;
    ops::linear(x, x);
    EXPECT_EQ(inner.list().size(), 1U);
  }
  EXPECT_TRUE(outer.list().empty());
  std::thread([&] {
    const ChosenKernels other;
    ops::gather_rows(x, int64_tensor({1}));
    EXPECT_EQ(other.list().size(), 1U);
  }).join();
  EXPECT_TRUE(outer.list().empty());
  ops::linear(x, x);
  EXPECT_EQ(outer.list().size(), 1U);
}

}  // namespace
}  // namespace espalier::test
