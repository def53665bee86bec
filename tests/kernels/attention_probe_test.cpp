// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/attention_probe/attention_probe.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "espalier/ops.h"
#include "kernels/ops/attention_probe/attention_probe_arguments.h"
#include "tests/kernels/attention_probe_oracle.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

using ops::HeadReduction;

class AttentionProbeTest : public DeviceTest {
 protected:
  static at::Tensor probe(const Layer& layer, const Groups& groups, const ProbeCase& c, HeadReduction heads,
                          bool reduce_rows) {
    const auto on = [](const at::Tensor& t) { return t.to(device()); };
    return ops::attention_probe(
        {.layer = {on(layer.query), on(layer.key), on(layer.lse)},
         .rows = on(int64_tensor(groups.rows)),
         .row_begin = int64_tensor(groups.row_begin),
         .columns = on(int64_tensor(groups.columns)),
         .column_begin = int64_tensor(groups.column_begin),
         .scale = c.scale,
         .is_causal = c.is_causal,
         .heads = heads,
         .reduce_rows = reduce_rows,
         .window = c.window,
         .position = c.window > 0 ? ops::OptionalTensor(on(int64_tensor(c.position))) : ops::OptionalTensor()});
  }

  static void expect_probe(const Layer& layer, const Groups& groups, const ProbeCase& c) {
    const Softmax softmax(layer, c);
    for (const HeadReduction heads : {HeadReduction::kMean, HeadReduction::kMax, HeadReduction::kEach}) {
      for (const bool reduce_rows : {true, false}) {
        if (!reduce_rows && groups.row_begin.size() != 2) continue;
        const at::Tensor out = probe(layer, groups, c, heads, reduce_rows);
        EXPECT_EQ(out.scalar_type(), at::kFloat);
        EXPECT_EQ(out.device().type(), device().type());
        // The inputs are exact in the oracle too and all sums are float32: one tolerance for every dtype.
        expect_close(
            out, probe_oracle(softmax, groups, heads, reduce_rows), 1e-5,
            "heads " + std::to_string(static_cast<int>(heads)) + ", reduce_rows " + std::to_string(reduce_rows));
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, AttentionProbeTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

// Two packed sequences; groups of 0, 1, few and many rows and columns.
TEST_P(AttentionProbeTest, RaggedGroupsMatchTheSoftmax) {
  for (const auto& [h, g, d] :
       std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {4, 4, 64}, {4, 2, 7}, {6, 1, 33}, {2, 2, 128}}) {
    ProbeCase c{.sequences = {0, 90, 301}, .scale = 1.0 / std::sqrt(static_cast<double>(d))};
    const Layer layer = random_layer(301, h, g, d, dtype(), c);
    Groups groups;
    groups.add({89}, range(1, 60));
    groups.add({}, range(3, 5));
    groups.add(range(100, 300), range(90, 231));
    groups.add({300, 95, 95}, {});
    groups.add({200, 91}, {250, 90, 90, 200, 201, 91});
    expect_probe(layer, groups, c);
  }
}

TEST_P(AttentionProbeTest, OneGroupKeepsRows) {
  ProbeCase c{.sequences = {0, 260}, .scale = 0.3};
  const Layer layer = random_layer(260, 4, 2, 32, dtype(), c);
  Groups groups;
  groups.add(range(20, 200), range(0, 173));
  expect_probe(layer, groups, c);
  Groups one;
  one.add({259}, range(0, 260));
  expect_probe(layer, one, c);
  Groups none;
  none.add({}, {});
  expect_probe(layer, none, c);
}

TEST_P(AttentionProbeTest, WindowAndNotCausal) {
  ProbeCase c{.sequences = {0, 40, 101}, .scale = 0.2, .window = 17};
  for (int64_t i = 0; i < 101; ++i) c.position.push_back(i < 40 ? 2 * i : 3 * (i - 40));
  Groups groups;
  groups.add({39, 12, 5}, range(0, 40));
  groups.add(range(50, 101), range(40, 101));
  expect_probe(random_layer(101, 4, 2, 16, dtype(), c), groups, c);
  c.is_causal = false;
  c.window = 0;
  expect_probe(random_layer(101, 4, 2, 16, dtype(), c), groups, c);
}

TEST_P(AttentionProbeTest, NonContiguousInputs) {
  ProbeCase c{.sequences = {0, 30}, .scale = 0.25};
  Layer layer = random_layer(30, 4, 2, 16, dtype(), c);
  Groups groups;
  groups.add({29, 3}, range(0, 30));
  const at::Tensor expected = probe(layer, groups, c, HeadReduction::kMean, true);
  const Layer dense = layer;
  layer.query = at::empty({30, 8 * 16}, dense.query.options())
                    .slice(1, 16, 80)
                    .view({30, 4, 16})
                    .copy_(dense.query);  // a fused projection
  layer.key = dense.key.transpose(0, 2).contiguous().transpose(0, 2);
  layer.lse = dense.lse.t().contiguous().t();
  expect_same(probe(layer, groups, c, HeadReduction::kMean, true), expected);
}

// Rows and keys apart, as where a decode step looks at the cache: the values of the whole softmax, by the kernels and
// by the composed form.
TEST_P(AttentionProbeTest, RowsAndKeysApart) {
  ProbeCase c{.sequences = {0, 90, 210}, .scale = 0.2};
  for (int64_t i = 0; i < 210; ++i) c.position.push_back(i < 90 ? 2 * i : 3 * (i - 90));
  Groups one_row, several;
  one_row.add({209}, range(90, 210));
  several.add({89, 12, 5}, range(0, 90));
  several.add(range(150, 210), range(90, 205));
  for (const Groups& groups : {one_row, several})
    for (const auto& [is_causal, window] : {std::pair<bool, int64_t>{true, 0}, {true, 40}, {false, 0}}) {
      c.is_causal = is_causal;
      c.window = window;
      const Layer layer = random_layer(210, 4, 2, 24, dtype(), c);
      const Softmax softmax(layer, c);
      const Apart a = apart(layer, groups, c, 17, 5);
      const auto on = [](const at::Tensor& t) { return t.to(device()); };
      for (const HeadReduction heads : {HeadReduction::kMean, HeadReduction::kMax, HeadReduction::kEach})
        for (const bool has_gradient : {false, true}) {
          const at::Tensor query = on(a.layer.query).clone().set_requires_grad(has_gradient);
          const at::Tensor out = ops::attention_probe({.layer = {query, on(a.layer.key), on(a.layer.lse)},
                                                       .rows = on(int64_tensor(a.groups.rows)),
                                                       .row_begin = int64_tensor(groups.row_begin),
                                                       .columns = on(int64_tensor(a.groups.columns)),
                                                       .column_begin = int64_tensor(groups.column_begin),
                                                       .scale = c.scale,
                                                       .is_causal = is_causal,
                                                       .heads = heads,
                                                       .window = window,
                                                       .position = on(int64_tensor(a.position)),
                                                       .own_key = on(int64_tensor(a.own_key))});
          expect_close(out, probe_oracle(softmax, groups, heads, true), 1e-5, has_gradient ? "composed" : "kernel");
        }
    }
}

// Without causality and window nobody asks where a row stands.
TEST_P(AttentionProbeTest, RowsThatSeeAllNeedNoPlace) {
  ProbeCase c{.sequences = {0, 60}, .scale = 0.2, .is_causal = false};
  const Layer layer = random_layer(60, 4, 2, 24, dtype(), c);
  const auto probe_of = [&](int64_t queries) {
    const auto on = [](const at::Tensor& t) { return t.to(device()); };
    return ops::attention_probe(
        {.layer = {on(layer.query.slice(0, 0, queries)), on(layer.key), on(layer.lse.slice(1, 0, queries))},
         .rows = on(int64_tensor({0, 1})),
         .row_begin = int64_tensor({0, 2}),
         .columns = on(int64_tensor(range(0, 60))),
         .column_begin = int64_tensor({0, 60}),
         .scale = c.scale,
         .is_causal = false});
  };
  expect_same(probe_of(2), probe_of(60));
}

// Invariant 10: a row's probabilities sum to 1 over the keys it sees.
TEST_P(AttentionProbeTest, RowsSumToOne) {
  ProbeCase c{.sequences = {0, 577}, .scale = 0.125};
  const Layer layer = random_layer(577, 2, 2, 64, dtype(), c);
  Groups groups;
  groups.add({0, 47, 48, 576}, range(0, 577));
  expect_close(probe(layer, groups, c, HeadReduction::kEach, false).sum(-1), at::full({2, 4}, 1.0), 1e-4);
}

// A row without keys has lse -inf: exp(score - lse) would be infinite.
TEST_P(AttentionProbeTest, RowWithoutKeysGivesZero) {
  ProbeCase c{.sequences = {0, 3}, .scale = 1.0, .is_causal = false};
  Layer layer = random_layer(3, 2, 1, 8, dtype(), c);
  layer.lse.fill_(-std::numeric_limits<float>::infinity());
  Groups groups;
  groups.add({1, 2}, {0, 1, 2});
  expect_close(probe(layer, groups, c, HeadReduction::kMax, true), at::full({3}, 0.0), 0.0);
}

// Every vector level of this machine and the plain loops against one another, in every type and at widths around the
// vectors' own.
TEST(AttentionProbeLevels, AgreeWithThePlainLoops) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int64_t d : {1, 15, 31, 64, 80}) {
      ProbeCase c{.sequences = {0, 150}, .scale = 0.3};
      const Layer layer = random_layer(150, 6, 2, d, dtype, c);
      Groups groups;
      groups.add(range(40, 149), range(0, 100));
      groups.add({149}, range(0, 150));
      const kernels::LayerPointers pointers("probe", {layer.query, layer.key, layer.lse});
      const at::Tensor rows = int64_tensor(groups.rows), columns = int64_tensor(groups.columns);
      const ops::AttentionProbeCall call{.layer = {layer.query, layer.key, layer.lse},
                                         .rows = rows,
                                         .row_begin = int64_tensor(groups.row_begin),
                                         .columns = columns,
                                         .column_begin = int64_tensor(groups.column_begin),
                                         .scale = c.scale};
      const kernels::GroupPointers shape("probe", kernels::groups_of(call));
      for (const auto heads : {ops::HeadReduction::kMean, ops::HeadReduction::kMax, ops::HeadReduction::kEach}) {
        const int64_t kept = heads == ops::HeadReduction::kEach ? 6 : 1;
        const at::Tensor expected = at::empty({kept, columns.size(0)}), got = at::empty_like(expected);
        kernels::attention_probe_plain(pointers.layer, shape.shape, heads, true, expected.mutable_data_ptr<float>());
        for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
          kernels::attention_probe_blocked(pointers.layer, shape.shape, heads, true, level,
                                           got.mutable_data_ptr<float>());
          expect_close(got, expected, 2e-6, "d " + std::to_string(d));
        }
      }
    }
  }
}

TEST(AttentionProbeGradient, MatchesFiniteDifferences) {
  ProbeCase c{.sequences = {0, 5, 9}, .scale = 0.7, .window = 4};
  for (int64_t i = 0; i < 9; ++i) c.position.push_back(i < 5 ? i : i - 5);
  const Layer layer = random_layer(9, 4, 2, 3, at::kDouble, c);
  Groups groups;
  groups.add({4, 2}, {0, 3, 1, 4});
  groups.add({}, {5});
  groups.add({8, 7, 8}, {5, 6, 7, 8});
  for (const HeadReduction heads : {HeadReduction::kMean, HeadReduction::kMax, HeadReduction::kEach}) {
    const Function f = [&](const std::vector<at::Tensor>& in) -> std::vector<at::Tensor> {
      return {ops::attention_probe({.layer = {in[0], in[1], in[2]},
                                    .rows = int64_tensor(groups.rows),
                                    .row_begin = int64_tensor(groups.row_begin),
                                    .columns = int64_tensor(groups.columns),
                                    .column_begin = int64_tensor(groups.column_begin),
                                    .scale = c.scale,
                                    .heads = heads,
                                    .window = c.window,
                                    .position = int64_tensor(c.position)})};
    };
    expect_gradients_match(f, {layer.query, layer.key, layer.lse.to(at::kDouble)});
  }
}

TEST(AttentionProbeGradient, Float32TakesTheSameValues) {
  ProbeCase c{.sequences = {0, 20}, .scale = 0.5};
  const Layer layer = random_layer(20, 4, 2, 8, at::kFloat, c);
  const auto probe = [&](const at::Tensor& query) {
    return ops::attention_probe({.layer = {query, layer.key, layer.lse},
                                 .rows = int64_tensor({19, 3}),
                                 .row_begin = int64_tensor({0, 2}),
                                 .columns = at::arange(20, at::kLong),
                                 .column_begin = int64_tensor({0, 20}),
                                 .scale = c.scale,
                                 .heads = HeadReduction::kMax});
  };
  const at::Tensor leaf = layer.query.clone().set_requires_grad(true);
  const at::Tensor out = probe(leaf);
  expect_close(out, probe(layer.query), 1e-6);
  out.sum().backward();
  EXPECT_TRUE(leaf.grad().defined());
}

TEST(AttentionProbeArguments, WrongOnesThrow) {
  const at::Tensor query = random_tensor({6, 4, 8}), key = random_tensor({6, 2, 8}), lse = at::full({4, 6}, 3.0F);
  const auto call = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& l, std::vector<int64_t> rows,
                        std::vector<int64_t> row_begin, std::vector<int64_t> column_begin, bool reduce_rows = true,
                        int64_t window = 0) {
    return ops::attention_probe({.layer = {q, k, l},
                                 .rows = int64_tensor(rows),
                                 .row_begin = int64_tensor(row_begin),
                                 .columns = int64_tensor({0, 1}),
                                 .column_begin = int64_tensor(column_begin),
                                 .reduce_rows = reduce_rows,
                                 .window = window});
  };
  EXPECT_NO_THROW(call(query, key, lse, {5}, {0, 1}, {0, 2}));
  EXPECT_THROW(call(query, random_tensor({6, 3, 8}), lse, {5}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, random_tensor({6, 2, 9}), lse, {5}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key.to(at::kBFloat16), lse, {5}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key, lse.t(), {5}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key, lse, {6}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key, lse, {-1}, {0, 1}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key, lse, {5}, {0, 2}, {0, 2}), c10::Error);
  EXPECT_THROW(call(query, key, lse, {5}, {0, 1}, {0, 1}), c10::Error);
  EXPECT_THROW(call(query, key, lse, {5}, {0, 1, 1}, {0, 1, 2}, false), c10::Error);
  EXPECT_THROW(call(query, key, lse, {5}, {0, 1}, {0, 2}, true, 3), c10::Error);
  EXPECT_THROW(call(query, key, lse, {5}, {0, 1}, {0, 2}, true, -1), c10::Error);
  // More keys than queries, causal: where do the rows stand?
  EXPECT_THROW(call(query, random_tensor({9, 2, 8}), lse, {5}, {0, 1}, {0, 2}), c10::Error);
  const auto placed = [&](const at::Tensor& own_key) {
    return ops::attention_probe({.layer = {query, random_tensor({9, 2, 8}), lse},
                                 .rows = int64_tensor({5}),
                                 .row_begin = int64_tensor({0, 1}),
                                 .columns = int64_tensor({8}),
                                 .column_begin = int64_tensor({0, 1}),
                                 .own_key = own_key});
  };
  EXPECT_NO_THROW(placed(int64_tensor({3, 4, 5, 6, 7, 8})));
  EXPECT_THROW(placed(int64_tensor({3, 4, 5, 6, 7, 9})), c10::Error);
  EXPECT_THROW(placed(int64_tensor({3, 4, 5, 6, 7})), c10::Error);
}

TEST(AttentionProbeArguments, MetaKnowsTheShape) {
  const auto meta = at::TensorOptions().device(at::kMeta);
  const at::Tensor out =
      ops::attention_probe({.layer = {at::empty({6, 4, 8}, meta), at::empty({6, 2, 8}, meta), at::empty({4, 6}, meta)},
                            .rows = at::empty({3}, meta.dtype(at::kLong)),
                            .row_begin = int64_tensor({0, 3}),
                            .columns = at::empty({5}, meta.dtype(at::kLong)),
                            .column_begin = int64_tensor({0, 5}),
                            .heads = HeadReduction::kEach,
                            .reduce_rows = false});
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{4, 3, 5}));
}

}  // namespace
}  // namespace espalier::test
