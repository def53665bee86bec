// SPDX-License-Identifier: Apache-2.0
#include "kernels/ops/attention_growth/attention_growth.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "espalier/ops.h"
#include "kernels/ops/attention_growth/attention_growth_arguments.h"
#include "tests/kernels/attention_probe_oracle.h"
#include "tests/support/devices.h"

namespace espalier::test {
namespace {

struct Direction {
  at::Tensor hidden, direction;  // [n, w], [groups, w]
  double weight = 0.0;
};

double cosine(const at::Tensor& a, const at::Tensor& b) {
  const std::vector<double> x = to_doubles(a), y = to_doubles(b);
  double dot = 0.0, xx = 0.0, yy = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    dot += x[i] * y[i];
    xx += x[i] * x[i];
    yy += y[i] * y[i];
  }
  return std::sqrt(xx) < 1e-12 || std::sqrt(yy) < 1e-12 ? 0.0 : dot / std::sqrt(xx * yy);
}

std::vector<double> oracle(const Softmax& lower, const Softmax& upper, const Groups& groups, bool relu_per_head,
                           const Direction& direction) {
  std::vector<double> out;
  for (size_t group = 0; group + 1 < groups.row_begin.size(); ++group) {
    const int64_t first = groups.row_begin[group], last = groups.row_begin[group + 1];
    for (int64_t j = groups.column_begin[group]; j < groups.column_begin[group + 1]; ++j) {
      double sum = 0.0;
      for (int64_t i = first; i < last; ++i) {
        for (int64_t head = 0; head < lower.num_heads(); ++head) {
          const double growth =
              upper.at(head, groups.rows[i], groups.columns[j]) - lower.at(head, groups.rows[i], groups.columns[j]);
          sum += relu_per_head ? std::max(0.0, growth) : growth;
        }
      }
      const double growth =
          last > first ? std::max(0.0, sum / static_cast<double>((last - first) * lower.num_heads())) : 0.0;
      const double similarity = direction.hidden.defined() ? cosine(direction.hidden[groups.columns[j]],
                                                                    direction.direction[static_cast<int64_t>(group)])
                                                           : 0.0;
      out.push_back(growth + direction.weight * similarity);
    }
  }
  return out;
}

class AttentionGrowthTest : public DeviceTest {
 protected:
  static at::Tensor growth(const Layer& lower, const Layer& upper, const Groups& groups, const ProbeCase& c,
                           bool relu_per_head, const Direction& direction) {
    const auto on = [](const at::Tensor& t) { return t.to(device()); };
    ops::OptionalTensor position, hidden, towards;
    if (c.window > 0) position = on(int64_tensor(c.position));
    if (direction.hidden.defined()) {
      hidden = on(direction.hidden);
      towards = on(direction.direction);
    }
    return ops::attention_growth({.lower = {on(lower.query), on(lower.key), on(lower.lse)},
                                  .upper = {on(upper.query), on(upper.key), on(upper.lse)},
                                  .rows = on(int64_tensor(groups.rows)),
                                  .row_begin = int64_tensor(groups.row_begin),
                                  .columns = on(int64_tensor(groups.columns)),
                                  .column_begin = int64_tensor(groups.column_begin),
                                  .scale = c.scale,
                                  .relu_per_head = relu_per_head,
                                  .window = c.window,
                                  .position = position,
                                  .hidden = hidden,
                                  .direction = towards,
                                  .cosine_weight = direction.weight});
  }

  static void expect_growth(const Layer& lower, const Layer& upper, const Groups& groups, const ProbeCase& c,
                            const Direction& direction) {
    const Softmax before(lower, c), after(upper, c);
    for (const bool relu_per_head : {false, true}) {
      const at::Tensor out = growth(lower, upper, groups, c, relu_per_head, direction);
      EXPECT_EQ(out.scalar_type(), at::kFloat);
      expect_close(out, oracle(before, after, groups, relu_per_head, direction), 1e-5,
                   relu_per_head ? "per head" : "mean");
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Devices, AttentionGrowthTest, testing::ValuesIn(all_device_dtypes()), device_dtype_name);

TEST_P(AttentionGrowthTest, RaggedGroupsMatchTheSoftmax) {
  for (const auto& [h, g, d] : std::vector<std::array<int64_t, 3>>{{1, 1, 1}, {4, 4, 64}, {6, 2, 13}}) {
    for (const bool has_direction : {false, true}) {
      ProbeCase c{.sequences = {0, 80, 250}, .scale = 1.0 / std::sqrt(static_cast<double>(d))};
      const Layer lower = random_layer(250, h, g, d, dtype(), c, 1), upper = random_layer(250, h, g, d, dtype(), c, 2);
      Groups groups;
      groups.add({79}, range(1, 61));
      groups.add({}, {4, 5});
      groups.add({249, 200, 201}, range(80, 250));
      groups.add({100}, {});
      Direction direction;
      if (has_direction) direction = {random_tensor({250, 45}, dtype(), 3), random_tensor({4, 45}, at::kFloat, 4), 0.6};
      expect_growth(lower, upper, groups, c, direction);
    }
  }
}

TEST_P(AttentionGrowthTest, WindowedLayers) {
  ProbeCase c{.sequences = {0, 70}, .scale = 0.3, .window = 20, .position = range(5, 75)};
  Groups groups;
  groups.add({69, 40}, range(0, 70));
  expect_growth(random_layer(70, 2, 1, 16, dtype(), c, 1), random_layer(70, 2, 1, 16, dtype(), c, 2), groups, c, {});
}

// Rows and keys apart, as where a decode step looks at the cache.
TEST_P(AttentionGrowthTest, RowsAndKeysApart) {
  ProbeCase c{.sequences = {0, 80, 250}, .scale = 0.2};
  for (int64_t i = 0; i < 250; ++i) c.position.push_back(2 * i);
  Groups groups;
  groups.add({79}, range(1, 61));
  groups.add({249, 200, 201}, range(80, 250));
  for (const int64_t window : {0, 60}) {
    c.window = window;
    const Layer lower = random_layer(250, 4, 2, 16, dtype(), c, 1), upper = random_layer(250, 4, 2, 16, dtype(), c, 2);
    const Direction direction{random_tensor({250, 45}, dtype(), 3), random_tensor({2, 45}, at::kFloat, 4), 0.6};
    const Apart a = apart(lower, groups, c, 11, 4), b = apart(upper, groups, c, 11, 4);
    const auto on = [](const at::Tensor& t) { return t.to(device()); };
    const at::Tensor out = ops::attention_growth({.lower = {on(a.layer.query), on(a.layer.key), on(a.layer.lse)},
                                                  .upper = {on(b.layer.query), on(b.layer.key), on(b.layer.lse)},
                                                  .rows = on(int64_tensor(a.groups.rows)),
                                                  .row_begin = int64_tensor(groups.row_begin),
                                                  .columns = on(int64_tensor(a.groups.columns)),
                                                  .column_begin = int64_tensor(groups.column_begin),
                                                  .scale = c.scale,
                                                  .relu_per_head = true,
                                                  .window = window,
                                                  .position = on(int64_tensor(a.position)),
                                                  .hidden = on(inside_buffer(direction.hidden, 11, 4)),
                                                  .direction = on(direction.direction),
                                                  .cosine_weight = direction.weight,
                                                  .own_key = on(int64_tensor(a.own_key))});
    expect_close(out, oracle(Softmax(lower, c), Softmax(upper, c), groups, true, direction), 1e-5);
  }
}

// Invariant 9: equal rows at both layers leave the cosine alone; growth lies in [0, 1].
TEST_P(AttentionGrowthTest, EqualLayersGiveTheCosineAlone) {
  ProbeCase c{.sequences = {0, 60}, .scale = 0.3};
  const Layer layer = random_layer(60, 4, 2, 16, dtype(), c);
  Groups groups;
  groups.add({59}, range(0, 50));
  const Direction direction{random_tensor({60, 30}, dtype(), 3), random_tensor({1, 30}, dtype(), 4), 1.0};
  expect_close(growth(layer, layer, groups, c, true, {}), at::zeros({50}), 0.0);
  const at::Tensor columns = int64_tensor(groups.columns).to(device());
  expect_close(growth(layer, layer, groups, c, false, direction),
               ops::cosine_score(direction.hidden.to(device()), direction.direction.to(device()), columns).view({50}),
               1e-6);
}

// Spec catp, V2. Its attention rows are probabilities: keys are unit vectors, the query holds their logarithms, lse is
// 0.
class PublishedVector : public AttentionGrowthTest {
 protected:
  static constexpr int64_t kTokens = 14;

  static Layer layer_of(const std::vector<std::vector<double>>& rows) {
    const at::Tensor query = at::zeros({kTokens, 2, kTokens}), key = at::zeros({kTokens, 2, kTokens});
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t j = 0; j < kTokens; ++j) {
        query[13][head][j] = std::log(rows[head][j]);
        key[j][head][j] = 1.0;
      }
    }
    return {query, key, at::zeros({2, kTokens})};
  }

  const Layer upper = layer_of({{.20, .05, .02, .10, .04, .03, .01, .06, .05, .10, .06, .04, .09, .15},
                                {.10, .09, .04, .06, .06, .01, .03, .10, .05, .08, .08, .06, .09, .15}});
  const Layer lower = layer_of({{.25, .06, .03, .02, .05, .02, .05, .04, .05, .10, .08, .05, .10, .10},
                                {.15, .04, .05, .04, .07, .04, .03, .06, .07, .08, .08, .07, .10, .12}});
  const at::Tensor hidden =
      at::tensor({1., 1., 1., 1., 0., 0., 0., 1., 0., .6, .8, 0., .3,  .3, .9, 0., 0., 1., -1., 0., 0.,
                  .5, .1, .8, .2, .9, .1, .8, .2, .4, .1, .9, .2, -.5, .5, .5, .9, .3, .1, .7,  .4, .3},
                 at::kFloat)
          .view({kTokens, 3});
  const at::Tensor query_mean = hidden.slice(0, 9, 14).mean(0, true);
};
INSTANTIATE_TEST_SUITE_P(Devices, PublishedVector, testing::ValuesIn(all_devices()), device_dtype_name);

TEST_P(PublishedVector, ContextScores) {
  const ProbeCase c;
  Groups groups;
  groups.add({13}, {1, 2, 3, 5, 6, 7});
  expect_close(growth(lower, upper, groups, c, false, {}), std::vector<double>{.02, 0, .05, 0, 0, .03}, 1e-6);
  expect_close(growth(lower, upper, groups, c, true, {}), std::vector<double>{.025, 0, .05, .005, 0, .03}, 1e-6);
  const std::vector<double> scores = {0.373247, 0.406234, 0.586935, 0.264935, -0.353247, 0.482411};
  expect_close(growth(lower, upper, groups, c, false, {hidden, query_mean, 0.6}), scores, 1e-6);
}

TEST(AttentionGrowthLevels, AgreeWithThePlainLoops) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    ProbeCase c{.sequences = {0, 150}, .scale = 0.3};
    const Layer lower = random_layer(150, 6, 2, 40, dtype, c, 1), upper = random_layer(150, 6, 2, 40, dtype, c, 2);
    Groups groups;
    groups.add(range(40, 149), range(0, 100));
    groups.add({149}, range(0, 150));
    const at::Tensor rows = int64_tensor(groups.rows), columns = int64_tensor(groups.columns);
    const kernels::LayerPointers before("growth", {lower.query, lower.key, lower.lse}),
        after("growth", {upper.query, upper.key, upper.lse});
    const ops::AttentionGrowthCall call{.lower = {lower.query, lower.key, lower.lse},
                                        .upper = {upper.query, upper.key, upper.lse},
                                        .rows = rows,
                                        .row_begin = int64_tensor(groups.row_begin),
                                        .columns = columns,
                                        .column_begin = int64_tensor(groups.column_begin),
                                        .scale = c.scale};
    const kernels::GroupPointers shape("growth", kernels::groups_of(call));
    const kernels::DirectionPointers direction(random_tensor({150, 77}, dtype, 3), random_tensor({2, 77}, dtype, 4),
                                               0.5);
    const at::Tensor expected = at::empty({250}), got = at::empty({250});
    for (const bool relu_per_head : {false, true}) {
      kernels::attention_growth_plain(before.layer, after.layer, shape.shape, relu_per_head, direction.direction,
                                      expected.mutable_data_ptr<float>());
      for (const kernels::CpuLevel level : {kernels::CpuLevel::kPlain, kernels::cpu_level()}) {
        kernels::attention_growth_blocked(before.layer, after.layer, shape.shape, relu_per_head, direction.direction,
                                          level, got.mutable_data_ptr<float>());
        expect_close(got, expected, 2e-6);
      }
    }
  }
}

TEST(AttentionGrowthArguments, WrongOnesThrow) {
  const at::Tensor q = random_tensor({6, 2, 8}), lse = at::zeros({2, 6}), hidden = random_tensor({6, 5});
  const auto call = [&](const at::Tensor& upper, const ops::OptionalTensor& hidden_states,
                        const ops::OptionalTensor& direction) {
    return ops::attention_growth({.lower = {q, q, lse},
                                  .upper = {upper, upper, lse},
                                  .rows = int64_tensor({5}),
                                  .row_begin = int64_tensor({0, 1}),
                                  .columns = int64_tensor({0, 1}),
                                  .column_begin = int64_tensor({0, 2}),
                                  .hidden = hidden_states,
                                  .direction = direction,
                                  .cosine_weight = 0.5});
  };
  EXPECT_NO_THROW(call(q, hidden, random_tensor({1, 5})));
  EXPECT_THROW(call(random_tensor({6, 2, 9}), {}, {}), c10::Error);
  EXPECT_THROW(call(q.to(at::kHalf), {}, {}), c10::Error);
  EXPECT_THROW(call(q, hidden, {}), c10::Error);
  EXPECT_THROW(call(q, hidden, random_tensor({2, 5})), c10::Error);
  EXPECT_THROW(call(q, hidden.slice(0, 0, 5), random_tensor({1, 5})), c10::Error);
}

}  // namespace
}  // namespace espalier::test
