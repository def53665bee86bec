// SPDX-License-Identifier: Apache-2.0
// Attention against plain loops in float64: ragged batches, grouped heads, windows, decoding, each CPU level, and
// gradients.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "espalier/ops.h"
#include "kernels/ops/attention/attention.h"
#include "kernels/ops/attention/attention_arguments.h"
#include "kernels/support/cpu_level.h"

namespace {

using at::Tensor;
using espalier::kernels::CpuLevel;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Tensor integers(const std::vector<int64_t>& values) {
  Tensor t = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), t.data_ptr<int64_t>());
  return t;
}

// One call's arguments. `slack` rows of NaN stand before, between and behind the sequences' keys: reading one of them
// shows.
struct Batch {
  Tensor query, key, value, query_begin, key_begin, key_length;
  Tensor query_position, key_position, key_weight;
  double scale = 0;
  bool is_causal = true;
  int64_t window = 0;

  std::tuple<Tensor, Tensor> attend() const { return espalier::ops::attention(call()); }
  espalier::ops::AttentionCall call() const {
    const auto optional = [](const Tensor& t) { return t.defined() ? std::optional<Tensor>(t) : std::nullopt; };
    return {.query = query,
            .key = key,
            .value = value,
            .query_begin = query_begin,
            .key_begin = key_begin,
            .key_length = key_length,
            .scale = scale,
            .is_causal = is_causal,
            .window = window,
            .query_position = optional(query_position),
            .key_position = optional(key_position),
            .key_weight = optional(key_weight)};
  }
};

struct Lengths {
  int64_t queries, keys;
};

// Positions with gaps: each token's is 1 to 3 behind the one before; a query's is that of its own key.
Batch make_batch(const std::vector<Lengths>& lengths, int64_t h, int64_t g, int64_t d, at::ScalarType dtype,
                 bool is_causal, int64_t window = 0, int64_t slack = 0) {
  at::manual_seed(7);
  std::vector<int64_t> query_begin{0}, key_begin, key_length, query_position, key_position;
  int64_t num_keys = slack;
  key_position.assign(slack, 0);
  for (const Lengths& l : lengths) {
    query_begin.push_back(query_begin.back() + l.queries);
    key_begin.push_back(num_keys);
    key_length.push_back(l.keys);
    num_keys += l.keys + slack;
    int64_t position = 5;
    for (int64_t j = 0; j < l.keys; ++j) key_position.push_back(position += 1 + (j * 7 + 3) % 3);
    for (int64_t i = 0; i < l.queries; ++i) {
      const int64_t own = i + l.keys - l.queries;
      query_position.push_back(own < 0 ? 0 : key_position[key_begin.back() + own]);
    }
    key_position.insert(key_position.end(), slack, 0);
  }
  Batch b;
  b.query = at::randn({query_begin.back(), h, d}, at::kFloat).to(dtype);
  b.key = at::full({num_keys, g, d}, std::nan(""), at::kFloat).to(dtype);
  b.value = b.key.clone();
  for (size_t s = 0; s < lengths.size(); ++s) {
    b.key.narrow(0, key_begin[s], key_length[s]).copy_(at::randn({key_length[s], g, d}, at::kFloat));
    b.value.narrow(0, key_begin[s], key_length[s]).copy_(at::randn({key_length[s], g, d}, at::kFloat));
  }
  b.query_begin = integers(query_begin);
  b.key_begin = integers(key_begin);
  b.key_length = integers(key_length);
  b.query_position = integers(query_position);
  b.key_position = integers(key_position);
  b.scale = 1.3 / std::sqrt(static_cast<double>(d));
  b.is_causal = is_causal;
  b.window = window;
  return b;
}

// The definition, in float64: output [nq, h, d] and lse [h, nq].
std::pair<Tensor, Tensor> oracle(const Batch& b) {
  const Tensor q = b.query.detach().to(at::kDouble).contiguous(), k = b.key.detach().to(at::kDouble).contiguous();
  const Tensor v = b.value.detach().to(at::kDouble).contiguous();
  const int64_t h = q.size(1), d = q.size(2), g = k.size(1);
  Tensor output = at::zeros(q.sizes(), at::kDouble), lse = at::full({h, q.size(0)}, -kInfinity, at::kDouble);
  const double *qp = q.data_ptr<double>(), *kp = k.data_ptr<double>(), *vp = v.data_ptr<double>();
  const int64_t *query_position = b.query_position.data_ptr<int64_t>(),
                *key_position = b.key_position.data_ptr<int64_t>();
  const Tensor weight = b.key_weight.defined() ? b.key_weight.detach().to(at::kDouble) : Tensor();
  const double* weights = weight.defined() ? weight.data_ptr<double>() : nullptr;
  for (int64_t s = 0; s < b.key_begin.size(0); ++s) {
    const int64_t q0 = b.query_begin.data_ptr<int64_t>()[s], nq = b.query_begin.data_ptr<int64_t>()[s + 1] - q0;
    const int64_t k0 = b.key_begin.data_ptr<int64_t>()[s], nk = b.key_length.data_ptr<int64_t>()[s];
    for (int64_t i = 0; i < nq; ++i) {
      for (int64_t head = 0; head < h; ++head) {
        std::vector<double> mass(nk, 0.0);
        double sum = 0;
        for (int64_t j = 0; j < nk; ++j) {
          if (b.is_causal && j > i + nk - nq) continue;
          if (b.window > 0 && query_position[q0 + i] - b.window >= key_position[k0 + j]) continue;
          const double *row = qp + ((q0 + i) * h + head) * d, *column = kp + ((k0 + j) * g + head / (h / g)) * d;
          double dot = 0;
          for (int64_t c = 0; c < d; ++c) dot += row[c] * column[c];
          const bool own = b.is_causal && j == i + nk - nq;
          mass[j] = std::exp(dot * b.scale) * (weight.defined() && !own ? weights[k0 + j] : 1.0);
          sum += mass[j];
        }
        if (sum == 0) continue;
        lse.data_ptr<double>()[head * q.size(0) + q0 + i] = std::log(sum);
        double* out = output.data_ptr<double>() + ((q0 + i) * h + head) * d;
        for (int64_t j = 0; j < nk; ++j) {
          if (mass[j] == 0) continue;
          const double* values = vp + ((k0 + j) * g + head / (h / g)) * d;
          for (int64_t c = 0; c < d; ++c) out[c] += mass[j] / sum * values[c];
        }
      }
    }
  }
  return {output, lse};
}

// Absolute below 1, relative above.
void expect_near(const Tensor& actual, const Tensor& expected, double tolerance, const char* what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  const Tensor a = actual.detach().to(at::kDouble).contiguous(), e = expected.detach().to(at::kDouble).contiguous();
  double worst = 0;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double x = a.data_ptr<double>()[i], y = e.data_ptr<double>()[i];
    if (std::isinf(y)) {
      ASSERT_EQ(x, y) << what << " at " << i;
      continue;
    }
    ASSERT_TRUE(std::isfinite(x)) << what << " at " << i;
    worst = std::max(worst, std::abs(x - y) / std::max(1.0, std::abs(y)));
  }
  EXPECT_LE(worst, tolerance) << what;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.contiguous(), y = b.contiguous();
  return x.sizes() == y.sizes() && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

// Values are of size 1. bf16 rounds the weights and the output to 8 bits.
double output_tolerance(at::ScalarType dtype) {
  if (dtype == at::kFloat) return 3e-6;
  return dtype == at::kHalf ? 2e-3 : 2e-2;
}

void expect_oracle(const Batch& b, const std::string& trace) {
  SCOPED_TRACE(trace);
  const auto [output, lse] = b.attend();
  const auto [expected, expected_lse] = oracle(b);
  EXPECT_EQ(output.scalar_type(), b.query.scalar_type());
  EXPECT_EQ(lse.scalar_type(), at::kFloat);
  expect_near(output, expected, output_tolerance(b.query.scalar_type()), "output");
  expect_near(lse, expected_lse, b.query.scalar_type() == at::kFloat ? 3e-6 : 2e-5, "lse");
}

std::string describe(at::ScalarType dtype, int64_t h, int64_t g, int64_t d, bool is_causal, int64_t window) {
  return std::string(c10::toString(dtype)) + " h=" + std::to_string(h) + " g=" + std::to_string(g) +
         " d=" + std::to_string(d) + (is_causal ? " causal" : " full") + " window=" + std::to_string(window);
}

const std::vector<Lengths> kRagged = {{0, 0}, {1, 1}, {5, 5}, {64, 64}, {65, 65}, {200, 200}, {0, 3}, {300, 300}};
constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

class ElementTypes : public testing::TestWithParam<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(All, ElementTypes, testing::ValuesIn(kDtypes),
                         [](const auto& test) { return std::string(c10::toString(test.param)); });

TEST_P(ElementTypes, PrefillMatchesTheDefinition) {
  for (const int64_t d : {7, 16, 32, 64, 80, 96, 128})
    for (const bool is_causal : {true, false})
      expect_oracle(make_batch(kRagged, 4, 4, d, GetParam(), is_causal), describe(GetParam(), 4, 4, d, is_causal, 0));
}

TEST_P(ElementTypes, GroupedHeads) {
  for (const auto& [h, g] : {std::pair<int64_t, int64_t>{4, 2}, {6, 1}, {7, 1}, {6, 3}})
    expect_oracle(make_batch(kRagged, h, g, 32, GetParam(), true), describe(GetParam(), h, g, 32, true, 0));
}

TEST_P(ElementTypes, WindowIsMeasuredInPositions) {
  for (const int64_t window : {1, 2, 40, 300, 100000})
    for (const bool is_causal : {true, false})
      expect_oracle(make_batch(kRagged, 2, 1, 32, GetParam(), is_causal, window),
                    describe(GetParam(), 2, 1, 32, is_causal, window));
}

TEST_P(ElementTypes, MoreKeysThanQueriesAndSlackRows) {
  const std::vector<Lengths> chunks = {{1, 300}, {3, 65}, {8, 8}, {40, 333}, {1, 1}, {2, 1000}, {100, 101}};
  for (const auto& [h, g] : {std::pair<int64_t, int64_t>{4, 4}, {8, 2}, {6, 1}})
    for (const int64_t window : {0, 50})
      for (const int64_t d : {16, 64, 80})
        expect_oracle(make_batch(chunks, h, g, d, GetParam(), true, window, 9),
                      describe(GetParam(), h, g, d, true, window));
}

TEST_P(ElementTypes, RowsThatSeeNoKey) {
  const std::vector<Lengths> lengths = {{5, 0}, {70, 64}, {4, 1}, {1, 0}, {90, 7}};
  expect_oracle(make_batch(lengths, 4, 2, 64, GetParam(), true), "causal");
  expect_oracle(make_batch(lengths, 4, 2, 64, GetParam(), false), "full");
  Batch windowed = make_batch(kRagged, 2, 2, 64, GetParam(), false, 3);
  windowed.query_position += 1000000;
  expect_oracle(windowed, "window before every row");
}

TEST_P(ElementTypes, PositionsInAnyOrder) {
  Batch b = make_batch({{150, 150}, {1, 400}}, 2, 1, 64, GetParam(), true, 30);
  b.key_position = b.key_position.flip(0).contiguous();
  expect_oracle(b, "positions descending");
}

TEST_P(ElementTypes, StridedInputs) {
  Batch b = make_batch({{70, 70}, {33, 33}, {1, 1}}, 4, 2, 32, GetParam(), true);
  const Batch contiguous = b;
  const Tensor fused = at::cat({b.query, b.key, b.value}, 1);
  b.query = fused.narrow(1, 0, 4);
  b.key = fused.narrow(1, 4, 2);
  b.value = fused.narrow(1, 6, 2);
  EXPECT_TRUE(same_bits(std::get<0>(b.attend()), std::get<0>(contiguous.attend())));
  b.key = b.key.transpose(0, 1).contiguous().transpose(0, 1);
  b.value = b.value.transpose(1, 2).contiguous().transpose(1, 2);
  EXPECT_TRUE(same_bits(std::get<0>(b.attend()), std::get<0>(contiguous.attend())));
}

TEST_P(ElementTypes, PackedEqualsAloneBitForBit) {
  const std::vector<Lengths> lengths = {{65, 65}, {1, 700}, {200, 260}, {5, 5}, {3, 1500}};
  for (const int64_t window : {0, 60}) {
    const Batch b = make_batch(lengths, 6, 2, 64, GetParam(), true, window, 3);
    const auto [output, lse] = b.attend();
    for (size_t s = 0; s < lengths.size(); ++s) {
      Batch alone = b;
      const int64_t q0 = b.query_begin.data_ptr<int64_t>()[s], k0 = b.key_begin.data_ptr<int64_t>()[s];
      alone.query = b.query.narrow(0, q0, lengths[s].queries);
      alone.query_position = b.query_position.narrow(0, q0, lengths[s].queries);
      alone.key = b.key.narrow(0, k0, lengths[s].keys).clone();
      alone.value = b.value.narrow(0, k0, lengths[s].keys).clone();
      alone.key_position = b.key_position.narrow(0, k0, lengths[s].keys);
      alone.query_begin = integers({0, lengths[s].queries});
      alone.key_begin = integers({0});
      alone.key_length = integers({lengths[s].keys});
      const int threads = at::get_num_threads();
      at::set_num_threads(1);
      const auto [alone_output, alone_lse] = alone.attend();
      at::set_num_threads(threads);
      EXPECT_TRUE(same_bits(alone_output, output.narrow(0, q0, lengths[s].queries))) << s;
      EXPECT_TRUE(same_bits(alone_lse, lse.narrow(1, q0, lengths[s].queries))) << s;
    }
  }
}

TEST_P(ElementTypes, LargeScoresStayFinite) {
  Batch b = make_batch({{130, 130}, {1, 130}}, 2, 2, 64, GetParam(), true);
  b.scale = 30;  // scores of some thousands: the exponentials of most keys underflow
  const auto [output, lse] = b.attend();
  const Tensor exact = b.value.narrow(0, 0, 1);
  expect_near(output.narrow(0, 0, 1), exact, 0, "the first row sees its own key only");
  EXPECT_TRUE(output.isfinite().all().item<bool>());
  EXPECT_TRUE(lse.isfinite().all().item<bool>());
}

// ---- each CPU level through the raw entry ----

struct LevelCase {
  CpuLevel level;
  at::ScalarType dtype;
};

class AttentionLevels : public testing::TestWithParam<LevelCase> {};

std::string name_of(const testing::TestParamInfo<LevelCase>& test) {
  constexpr std::array kNames = {"Plain", "Avx2", "Avx512", "Amx"};
  return kNames[static_cast<size_t>(test.param.level)] + std::string(c10::toString(test.param.dtype));
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionLevels,
    testing::Values(LevelCase{CpuLevel::kPlain, at::kFloat}, LevelCase{CpuLevel::kPlain, at::kBFloat16},
                    LevelCase{CpuLevel::kPlain, at::kHalf}, LevelCase{CpuLevel::kAvx2, at::kFloat},
                    LevelCase{CpuLevel::kAvx2, at::kBFloat16}, LevelCase{CpuLevel::kAvx2, at::kHalf},
                    LevelCase{CpuLevel::kAvx512, at::kFloat}, LevelCase{CpuLevel::kAvx512, at::kBFloat16},
                    LevelCase{CpuLevel::kAvx512, at::kHalf}, LevelCase{CpuLevel::kAmx, at::kBFloat16}),
    name_of);

std::pair<Tensor, Tensor> attend_at(CpuLevel level, const Batch& b) {
  using namespace espalier::kernels;
  Tensor output = at::full(b.query.sizes(), std::nan(""), b.query.options());
  Tensor lse = at::full({b.query.size(1), b.query.size(0)}, std::nan(""), at::kFloat);
  const auto rows = [](const Tensor& t) { return AttentionRows{t.const_data_ptr(), t.stride(0), t.stride(1)}; };
  const AttentionProblem problem{.query = rows(b.query),
                                 .key = rows(b.key),
                                 .value = rows(b.value),
                                 .output = output.data_ptr(),
                                 .lse = lse.data_ptr<float>(),
                                 .query_position = b.query_position.data_ptr<int64_t>(),
                                 .key_position = b.key_position.data_ptr<int64_t>(),
                                 .num_query_rows = b.query.size(0),
                                 .num_heads = b.query.size(1),
                                 .num_kv_heads = b.key.size(1),
                                 .head_dim = b.query.size(2),
                                 .window = b.window,
                                 .scale = static_cast<float>(b.scale),
                                 .is_causal = b.is_causal,
                                 .dtype = b.query.scalar_type() == at::kFloat      ? ElementType::kFloat32
                                          : b.query.scalar_type() == at::kBFloat16 ? ElementType::kBFloat16
                                                                                   : ElementType::kFloat16};
  std::vector<AttentionSequence> sequences;
  const int64_t* begin = b.query_begin.data_ptr<int64_t>();
  for (int64_t s = 0; s < b.key_begin.size(0); ++s)
    sequences.push_back(
        {begin[s], begin[s + 1] - begin[s], b.key_begin.data_ptr<int64_t>()[s], b.key_length.data_ptr<int64_t>()[s]});
  attention_cpu(problem, sequences.data(), static_cast<int64_t>(sequences.size()), level);
  return {output, lse};
}

TEST_P(AttentionLevels, MatchTheDefinition) {
  if (GetParam().level > espalier::kernels::cpu_level()) GTEST_SKIP() << "this machine lacks the instructions";
  const std::vector<Lengths> lengths = {{0, 4}, {1, 600}, {5, 5}, {65, 65}, {100, 330}, {70, 64}, {97, 97}, {2, 1111}};
  for (const int64_t d : {7, 16, 64, 80, 96, 128})
    for (const auto& [h, g] : {std::pair<int64_t, int64_t>{2, 2}, {3, 1}})
      for (const auto& [is_causal, window] : {std::pair<bool, int64_t>{true, 0}, {true, 45}, {false, 0}, {false, 45}}) {
        SCOPED_TRACE(describe(GetParam().dtype, h, g, d, is_causal, window));
        const Batch b = make_batch(lengths, h, g, d, GetParam().dtype, is_causal, window, 2);
        const auto [output, lse] = attend_at(GetParam().level, b);
        const auto [expected, expected_lse] = oracle(b);
        expect_near(output, expected, output_tolerance(GetParam().dtype), "output");
        expect_near(lse, expected_lse, GetParam().dtype == at::kFloat ? 3e-6 : 2e-5, "lse");
      }
}

// Rows behind a long prefix, and rows of several streams against one shared run of keys: few rows and heads, keys
// enough to be cut. Above 96 stacked rows keys are packed first; both forms are met with and without a remainder.
TEST_P(AttentionLevels, FewRowsAgainstManyKeys) {
  if (GetParam().level > espalier::kernels::cpu_level()) GTEST_SKIP() << "this machine lacks the instructions";
  const std::vector<Lengths> lengths = {{8, 1300}, {32, 1100}, {31, 2100}, {60, 1024}, {130, 1500}};
  for (const auto& [h, g] : {std::pair<int64_t, int64_t>{1, 1}, {4, 1}})
    for (const auto& [is_causal, window] : {std::pair<bool, int64_t>{true, 0}, {true, 900}, {false, 0}}) {
      SCOPED_TRACE(describe(GetParam().dtype, h, g, 32, is_causal, window));
      const Batch b = make_batch(lengths, h, g, 32, GetParam().dtype, is_causal, window, 3);
      const auto [output, lse] = attend_at(GetParam().level, b);
      const auto [expected, expected_lse] = oracle(b);
      expect_near(output, expected, output_tolerance(GetParam().dtype), "output");
      expect_near(lse, expected_lse, GetParam().dtype == at::kFloat ? 3e-6 : 2e-5, "lse");
    }
}

// Keys may be read by several sequences, in part or in whole.
TEST_P(AttentionLevels, SequencesMayShareKeys) {
  if (GetParam().level > espalier::kernels::cpu_level()) GTEST_SKIP() << "this machine lacks the instructions";
  Batch b = make_batch({{3, 400}, {40, 400}, {1, 400}}, 4, 2, 64, GetParam().dtype, true, 0, 2);
  b.key_begin = integers({2, 2, 60});
  b.key_length = integers({400, 400, 300});
  const auto [output, lse] = attend_at(GetParam().level, b);
  const auto [expected, expected_lse] = oracle(b);
  expect_near(output, expected, output_tolerance(GetParam().dtype), "output");
  expect_near(lse, expected_lse, GetParam().dtype == at::kFloat ? 3e-6 : 2e-5, "lse");
}

// Three thousand keys in float32 stay within 2e-6 of the largest value.
TEST_P(AttentionLevels, LongSequencesKeepFloat32Accuracy) {
  if (GetParam().level > espalier::kernels::cpu_level()) GTEST_SKIP() << "this machine lacks the instructions";
  if (GetParam().dtype != at::kFloat) GTEST_SKIP() << "float32 only";
  for (const int64_t queries : {1, 40}) {
    const Batch b = make_batch({{queries, 3000}}, 2, 2, 64, at::kFloat, true);
    const auto [output, lse] = attend_at(GetParam().level, b);
    const auto [expected, expected_lse] = oracle(b);
    expect_near(output, expected, 2e-6 * expected.abs().max().item<double>(), "output");
    expect_near(lse, expected_lse, 2e-6 * expected_lse.abs().max().item<double>(), "lse");
  }
}

// ---- CUDA: the library's flash kernel and the tiled one ----

class AttentionCuda : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  }
  static void expect_oracle_on_gpu(const Batch& b, std::string_view kernel) {
    Batch gpu = b;
    for (Tensor Batch::*member :
         {&Batch::query, &Batch::key, &Batch::value, &Batch::query_position, &Batch::key_position})
      gpu.*member = (gpu.*member).to(at::kCUDA);
    EXPECT_EQ(espalier::ops::attention_kernel_name(gpu.call()), kernel);
    const auto [output, lse] = gpu.attend();
    const auto [expected, expected_lse] = oracle(b);
    expect_near(output.cpu(), expected, output_tolerance(GetParam()), "output");
    expect_near(lse.cpu(), expected_lse, GetParam() == at::kFloat ? 3e-6 : 2e-5, "lse");
  }
};
INSTANTIATE_TEST_SUITE_P(All, AttentionCuda, testing::ValuesIn(kDtypes),
                         [](const auto& test) { return std::string(c10::toString(test.param)); });

TEST_P(AttentionCuda, MatchesTheDefinition) {
  for (const int64_t d : {7, 32, 64, 80, 128, 300})
    for (const auto& [h, g] : {std::pair<int64_t, int64_t>{2, 2}, {6, 2}})
      for (const bool is_causal : {true, false}) {
        SCOPED_TRACE(describe(GetParam(), h, g, d, is_causal, 0));
        const bool flash = GetParam() != at::kFloat && d % 8 == 0 && d <= 256;
        expect_oracle_on_gpu(make_batch(kRagged, h, g, d, GetParam(), is_causal, 0, 4),
                             flash ? "cuda_flash" : "cuda_tiled");
        expect_oracle_on_gpu(make_batch(kRagged, h, g, d, GetParam(), is_causal, 40, 4), "cuda_tiled");
        expect_oracle_on_gpu(make_batch({{1, 300}, {3, 65}, {8, 8}, {2, 1000}}, h, g, d, GetParam(), is_causal, 0, 4),
                             "cuda_tiled");
        expect_oracle_on_gpu(make_batch({{5, 0}, {70, 64}, {1, 0}}, h, g, d, GetParam(), is_causal), "cuda_tiled");
      }
}

TEST(AttentionCudaChoice, FlashWhereItServes) {
  const auto takes_flash = [](const Batch& b) { return espalier::ops::attention_takes_flash(b.call()); };
  EXPECT_TRUE(takes_flash(make_batch({{100, 100}, {1, 300}}, 4, 2, 64, at::kBFloat16, true, 0, 5)));
  EXPECT_FALSE(takes_flash(make_batch({{100, 100}}, 4, 2, 64, at::kFloat, true)));
  EXPECT_FALSE(takes_flash(make_batch({{100, 100}}, 4, 2, 64, at::kHalf, true, 7)));
  EXPECT_FALSE(takes_flash(make_batch({{100, 100}}, 4, 2, 68, at::kHalf, true)));
  EXPECT_FALSE(takes_flash(make_batch({{100, 99}}, 4, 2, 64, at::kHalf, true)));
  EXPECT_TRUE(takes_flash(make_batch({{100, 99}}, 4, 2, 64, at::kHalf, false)));
  EXPECT_FALSE(takes_flash(make_batch({{1, 300}}, 4, 2, 64, at::kHalf, true)));
}

// ---- the composed form: float64, gradients, key weights ----

Batch double_batch(bool is_causal, int64_t window, bool weighted) {
  Batch b = make_batch({{4, 4}, {2, 5}, {0, 2}, {3, 0}}, 4, 2, 3, at::kDouble, is_causal, window);
  if (weighted) {
    b.key_weight = at::rand({b.key.size(0)}, at::kDouble) * 0.9 + 0.05;
    b.key_weight.data_ptr<double>()[1] = 0.0;
    b.key_weight.data_ptr<double>()[6] = 0.0;
  }
  return b;
}

TEST(AttentionComposed, MatchesTheDefinitionInFloat64) {
  for (const bool is_causal : {true, false})
    for (const int64_t window : {0, 4})
      for (const bool weighted : {false, true}) {
        const Batch b = double_batch(is_causal, window, weighted);
        const auto [output, lse] = b.attend();
        const auto [expected, expected_lse] = oracle(b);
        expect_near(output, expected, 1e-12, "output");
        expect_near(lse, expected_lse, 1e-12, "lse");
      }
}

// A fixed linear functional of output and finite lse entries, so that both carry gradient.
Tensor functional(const Batch& b) {
  const auto [output, lse] = b.attend();
  at::manual_seed(3);
  const Tensor output_factor = at::randn(output.sizes(), output.options().requires_grad(false));
  const Tensor lse_factor = at::randn(lse.sizes(), lse.options().requires_grad(false));
  return (output * output_factor).sum() + (lse * lse_factor).masked_select(lse.isfinite()).sum();
}

void expect_gradient(Batch b, Tensor Batch::*member) {
  b.*member = (b.*member).clone().requires_grad_(true);
  functional(b).backward();
  const Tensor gradient = (b.*member).grad();
  ASSERT_TRUE(gradient.defined());
  const at::NoGradGuard no_gradient;
  const Tensor base = (b.*member).detach();
  const double step = 1e-6;
  for (int64_t i = 0; i < base.numel(); ++i) {
    const auto shifted = [&](double by) {
      Batch c = b;
      c.*member = base.clone();
      (c.*member).data_ptr<double>()[i] += by;
      return functional(c).item<double>();
    };
    // One-sided at a weight of exactly 0, where a negative weight would mean nothing.
    const bool at_zero = base.data_ptr<double>()[i] == 0.0;
    const double numeric = at_zero ? (-3 * shifted(0) + 4 * shifted(step) - shifted(2 * step)) / (2 * step)
                                   : (shifted(step) - shifted(-step)) / (2 * step);
    EXPECT_NEAR(gradient.contiguous().data_ptr<double>()[i], numeric, 1e-7 * std::max(1.0, std::abs(numeric)) + 1e-7)
        << i;
  }
}

TEST(AttentionComposed, GradientsMatchFiniteDifferences) {
  for (const bool is_causal : {true, false})
    for (const int64_t window : {0, 4})
      for (const bool weighted : {false, true}) {
        SCOPED_TRACE(describe(at::kDouble, 4, 2, 3, is_causal, window) + (weighted ? " weighted" : ""));
        const Batch b = double_batch(is_causal, window, weighted);
        expect_gradient(b, &Batch::query);
        expect_gradient(b, &Batch::key);
        expect_gradient(b, &Batch::value);
        if (weighted) expect_gradient(b, &Batch::key_weight);
      }
}

TEST(AttentionComposed, FloatGradientFormAgreesWithTheKernel) {
  Batch b = make_batch({{70, 70}, {3, 40}}, 4, 2, 16, at::kFloat, true, 60);
  const auto [output, lse] = b.attend();
  b.query.requires_grad_(true);
  const auto [composed, composed_lse] = b.attend();
  EXPECT_TRUE(composed.requires_grad());
  expect_near(composed, output, 3e-6, "output");
  expect_near(composed_lse, lse, 3e-6, "lse");
}

TEST(AttentionComposed, WeightZeroRemovesTheKeyForOtherRows) {
  Batch b = make_batch({{6, 6}}, 2, 1, 8, at::kFloat, true);
  const std::vector<int64_t> kept = {0, 1, 3, 5};
  b.key_weight = at::zeros({6}, at::kFloat);
  for (const int64_t j : kept) b.key_weight.data_ptr<float>()[j] = 1.0F;
  b.key.narrow(0, 2, 1).mul_(200.0);  // removed keys that would have drowned every other
  const auto [output, lse] = b.attend();
  Batch removed = b;
  removed.key_weight = Tensor();
  removed.query = b.query.index_select(0, integers(kept));
  removed.key = b.key.index_select(0, integers(kept));
  removed.value = b.value.index_select(0, integers(kept));
  removed.query_begin = integers({0, 4});
  removed.key_length = integers({4});
  const auto [expected, expected_lse] = removed.attend();
  expect_near(output.index_select(0, integers(kept)), expected, 1e-6, "output");
  expect_near(lse.index_select(1, integers(kept)), expected_lse, 2e-6, "lse");
}

TEST(AttentionComposed, WeightZeroHasAFiniteGradientUnderHugeScores) {
  for (const float huge : {1.0F, 1000.0F}) {
    Batch b = make_batch({{6, 6}}, 2, 1, 8, at::kFloat, true);
    b.key.narrow(0, 2, 1).mul_(huge);
    b.key_weight = at::zeros({6}, at::kFloat);
    for (Tensor* t : {&b.query, &b.key, &b.value, &b.key_weight}) t->requires_grad_(true);
    const auto [output, lse] = b.attend();
    (output.sum() + lse.sum()).backward();
    for (const Tensor* t : {&b.query, &b.key, &b.value, &b.key_weight})
      EXPECT_TRUE(t->grad().isfinite().all().item<bool>());
  }
}

// ---- arguments ----

void expect_refused(const Batch& b, const std::string& part) {
  try {
    b.attend();
    FAIL() << "accepted; expected: " << part;
  } catch (const c10::Error& e) {
    const std::string message = e.what_without_backtrace();
    EXPECT_EQ(message.rfind("attention: ", 0), 0u) << message;
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST(AttentionArguments, WrongOnesAreRefused) {
  const Batch good = make_batch({{3, 3}, {2, 4}}, 4, 2, 16, at::kFloat, true);
  Batch b = good;
  b.query = b.query.narrow(1, 0, 3);
  expect_refused(b, "multiple of the KV heads");
  b = good;
  b.key = b.key.to(at::kBFloat16);
  expect_refused(b, "one dtype");
  b = good;
  b.value = b.value.narrow(0, 0, 6);
  expect_refused(b, "one shape");
  b = good;
  b.key_length = integers({3, 5});
  expect_refused(b, "lie outside");
  b = good;
  b.query_begin = integers({0, 4, 3});
  expect_refused(b, "query_begin");
  b = good;
  b.query_begin = integers({0, 5});
  expect_refused(b, "query_begin [b+1]");
  b = good;
  b.window = 4;
  b.key_position = Tensor();
  expect_refused(b, "a window needs");
  b = good;
  b.key_weight = at::zeros({3}, at::kFloat);
  expect_refused(b, "key_weight must be");
  b = good;
  b.scale = 0;
  expect_refused(b, "scale must be positive");
}

TEST(AttentionArguments, MetaGivesShapes) {
  const Batch b = make_batch({{3, 3}}, 4, 2, 16, at::kBFloat16, true);
  Batch meta = b;
  for (Tensor Batch::*member : {&Batch::query, &Batch::key, &Batch::value}) meta.*member = (meta.*member).to(at::kMeta);
  const auto [output, lse] = meta.attend();
  EXPECT_EQ(output.sizes(), b.query.sizes());
  EXPECT_EQ(output.scalar_type(), at::kBFloat16);
  EXPECT_EQ(lse.sizes(), at::IntArrayRef({4, 3}));
  EXPECT_EQ(lse.scalar_type(), at::kFloat);
}

}  // namespace
