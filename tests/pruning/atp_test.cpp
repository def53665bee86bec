// SPDX-License-Identifier: Apache-2.0
// ATP against the vectors and invariants of docs/specs/atp_llava.md, and against a loop in float64 that has a layout of
// several images and tiles, survivors of earlier modules, and trained heads.
#include "espalier/policies/atp.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>

#include "espalier/error.h"
#include "pruning/atp_modules.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;
using Numbers = std::vector<double>;

at::Tensor doubles(const Numbers& values) {
  return at::tensor(values, at::kDouble);
}

// ---- the specification's vectors ----

// W1: a grid of 2 x 3 and two text tokens; layer 0 of a model that acts before layer 1.
ArraySignals w1() {
  const std::vector<Numbers> logits = {{0},
                                       {1, .5},
                                       {.2, 1.5, .3},
                                       {.4, .1, 2, .2},
                                       {.9, .3, 1.1, .6, .5},
                                       {.1, .8, .7, 1.2, .4, .3},
                                       {.5, .2, 1.6, .1, .9, .7, .3},
                                       {.3, 1.4, 1.8, .2, .6, .5, .4, .2}};
  ArraySignals arrays;
  arrays.attention[0] = {test::causal_softmax(
      8, [&](int64_t q, int64_t k) { return logits[static_cast<size_t>(q)][static_cast<size_t>(k)]; })};
  return arrays;
}

const Numbers kSelf = {0.377325, 0.239376, 0.219635, 0.095784, 0.048328, 0.019553};
const Numbers kCross = {0.091669, 0.148906, 0.328263, 0.069840, 0.131674, 0.111965};
const Numbers kRedundancy = {0.810501, 0.616659, 1, 0.081911, 0.116441, 0};

std::shared_ptr<const PromptLayout> two_by_three() {
  return LayoutBuilder().image({2, 3}, 0).text(2, 0).build(0);
}

TEST(AtpVectors, ScoresAndKeptSetsOfW1) {
  const auto prompt = two_by_three();
  const std::pair<const char*, Tokens> cases[] = {{"theta_r=0.5,theta_s=0.2", {0, 1, 2}},
                                                  {"theta_r=0.5,theta_s=0.3", {0, 1, 2}},
                                                  {"theta_r=0.3,theta_s=0.9", {0, 1, 2}},
                                                  {"theta_r=0.05,theta_s=0.5", {0, 1, 2, 3, 4}}};
  for (const auto& [thetas, kept] : cases) {
    const auto points =
        test::run(make_policy("atp:layers=1,strides=2:4," + std::string(thetas)), facts(4), prompt, w1());
    ASSERT_EQ(points.size(), 1U);
    EXPECT_EQ(points[0].kept, kept) << thetas;
    ASSERT_EQ(points[0].scores.size(), 6U);
    for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(points[0].scores[i], kRedundancy[i], 2e-6);
    ASSERT_EQ(points[0].notes.size(), 2U);
    EXPECT_EQ(points[0].notes[0].first, "theta_r");
  }
}

TEST(AtpVectors, SoftMasksOfW1) {
  const at::Tensor spatial = atp_spatial_score({2, 3}, Tokens{2, 4}, 3.0).to(at::kDouble);
  EXPECT_EQ(test::to_doubles(spatial), (Numbers{0.8125, 0, 0.25, 0, 0, 0}));
  EXPECT_EQ(test::to_doubles(atp_spatial_score({2, 3}, Tokens{2}, 3.0)), (Numbers{0.25, 0, 0.25, 0, 0, 0}));
  const std::tuple<double, double, Numbers> cases[] = {
      {0.5, 0.2, {.997817, .762529, .993307, .119203, .119203, .119203}},
      {0.5, 0.3, {.994089, .762529, .993307, .047426, .047426, .047426}},
      {0.3, 0.9, {.993970, .959558, .999089, .101480, .137574, .047426}},
      {0.05, 0.5, {.999502, .996552, .999925, .579108, .660251, .377541}}};
  for (const auto& [theta_r, theta_s, expected] : cases) {
    const AtpThresholds thresholds{at::tensor(theta_r, at::kDouble), at::tensor(theta_s, at::kDouble)};
    const Numbers mask = test::to_doubles(atp_soft_mask(
        atp_redundancy_score(doubles(kSelf), doubles(kCross), AtpNorm::kMinmax), spatial, thresholds, 10));
    for (size_t i = 0; i < 6; ++i) EXPECT_NEAR(mask[i], expected[i], 5e-6);
  }
}

// The head of W1: theta from the raw scores, input order self then cross.
AtpModule w1_head(at::ScalarType dtype) {
  at::Tensor mix = at::zeros({2, 12}, dtype);
  mix[0][0] = 1;
  mix[0][8] = 1;
  mix[1][2] = 2;
  mix[1][11] = -1;
  const auto row = [&](const Numbers& values) { return at::tensor(values, dtype); };
  return {mix, row({0.1, -0.2}), row({1, -2}).unsqueeze(0), row({-0.3}), row({0.5, 1}).unsqueeze(0), row({-0.8})};
}

TEST(AtpVectors, HeadAndScatterOfW1) {
  const at::Tensor places = at::arange(6, at::kLong);
  const at::Tensor input = atp_head_input(doubles(kSelf), doubles(kCross), places, {2, 3}, AtpHeadInput::kScatter);
  const AtpThresholds thetas = atp_thresholds(w1_head(at::kDouble), AtpActivation::kNone, input);
  EXPECT_NEAR(thetas.redundancy.item<double>(), 0.5624175363, 1e-6);  // from scores of six digits
  EXPECT_NEAR(thetas.spatial.item<double>(), 0.4329314099, 1e-6);
  const at::Tensor some = at::tensor(Tokens{0, 2, 5}, at::kLong);
  EXPECT_EQ(test::to_doubles(atp_head_input(doubles(kSelf).index_select(0, some), doubles(kCross).index_select(0, some),
                                            some, {2, 3}, AtpHeadInput::kScatter)),
            (Numbers{0.377325, 0, 0.219635, 0, 0, 0.019553, 0.091669, 0, 0.328263, 0, 0, 0.111965}));
  // The same through the policy, from weights.
  auto weights = std::make_shared<AtpWeights>();
  weights->settings = {.layers = {1}, .grid = {2, 3}, .strides = {2, 4}};
  weights->modules = {w1_head(at::kFloat)};
  const auto points = test::run(make_atp({.weights = weights}), facts(4), two_by_three(), w1());
  EXPECT_NEAR(points.at(0).notes.at(0).second.at(0), 0.5624175363, 1e-6);
  EXPECT_NEAR(points[0].notes.at(1).second.at(0), 0.4329314099, 1e-6);
  EXPECT_EQ(points[0].kept, (Tokens{0, 1, 2}));
}

TEST(AtpVectors, SpatialScoresOfW2) {
  const Numbers small = test::to_doubles(atp_spatial_score({4, 4}, Tokens{2, 4}, 3.0));
  for (int64_t i = 0; i < 16; ++i)
    EXPECT_EQ(small[static_cast<size_t>(i)], i == 0 ? 0.8125 : i == 2 || i == 8 || i == 10 ? 0.25 : 0.0) << i;
  std::map<double, int> count;
  for (const double s : test::to_doubles(atp_spatial_score({24, 24}, Tokens{2, 4, 8}, 3.0))) ++count[s];
  EXPECT_EQ(count, (std::map<double, int>{{0.953125, 9}, {0.8125, 27}, {0.25, 108}, {0.0, 432}}));
  EXPECT_NEAR(atp_spatial_score({24, 24}, Tokens{3}, 3.0)[0].item<double>(), 0.666667, 1e-6);
  EXPECT_EQ(atp_spatial_score({2, 2}, Tokens{1}, 3.0)[3].item<double>(), -2.0);
}

// ---- invariants ----

TEST(AtpModules, ASteepSoftMaskIsTheHardOne) {
  const at::Tensor spatial = atp_spatial_score({6, 6}, Tokens{2, 3}, 3.0).to(at::kDouble);
  for (int trial = 0; trial < 20; ++trial) {
    const at::Tensor red = at::rand({36}, at::kDouble);
    const AtpThresholds thetas{at::rand({}, at::kDouble), at::rand({}, at::kDouble)};
    for (const AtpStrategy strategy : {AtpStrategy::kBoth, AtpStrategy::kRedundant, AtpStrategy::kSpatial}) {
      const at::Tensor hard = atp_hard_keep(red, spatial, thetas, 0, strategy);
      const at::Tensor soft = atp_soft_mask(red, spatial, thetas, 1e9, strategy);
      EXPECT_TRUE((soft == hard.to(at::kDouble)).all().item<bool>());
      // Raising a threshold lets none in.
      const AtpThresholds higher{thetas.redundancy + 0.1, thetas.spatial + 0.1};
      EXPECT_FALSE((atp_hard_keep(red, spatial, higher, 0, strategy) & hard.logical_not()).any().item<bool>());
      EXPECT_TRUE(
          (atp_soft_mask(red, spatial, higher, 10, strategy) <= atp_soft_mask(red, spatial, thetas, 10, strategy))
              .all()
              .item<bool>());
    }
  }
}

TEST(AtpModules, AtLeastTheBestStay) {
  const at::Tensor none = at::zeros({4}, at::kDouble), red = doubles({0.2, 0.7, 0.7, 0.1});
  const AtpThresholds high{at::tensor(0.9, at::kDouble), at::tensor(0.9, at::kDouble)};
  const auto kept = [&](const AtpThresholds& thetas, int64_t least) {
    return test::to_vector(atp_hard_keep(red, none, thetas, least).nonzero().squeeze(1));
  };
  EXPECT_EQ(kept(high, 0), Tokens{});
  EXPECT_EQ(kept(high, 1), Tokens{1});
  EXPECT_EQ(kept(high, 3), (Tokens{0, 1, 2}));
  EXPECT_EQ(kept(high, 9), (Tokens{0, 1, 2, 3}));
  EXPECT_EQ(kept({at::tensor(0.15, at::kDouble), high.spatial}, 2), (Tokens{0, 1, 2}));
  EXPECT_EQ(kept({at::tensor(0.7, at::kDouble), high.spatial}, 0), Tokens{});  // equality prunes
}

TEST(AtpModules, NormalisationsOfTheScores) {
  const at::Tensor a = doubles({.1, .3, .2, .3}), b = doubles({.3, .3, .2, .5});  // means .2 .3 .2 .4
  const auto normed = [&](AtpNorm norm, const at::Tensor& range = {}) {
    return test::to_doubles(atp_redundancy_score(a, b, norm, range));
  };
  const auto near = [](const Numbers& got, const Numbers& expected) {
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-12) << i;
  };
  near(normed(AtpNorm::kNone), {.2, .3, .2, .4});
  near(normed(AtpNorm::kMinmax), {0, .5, 0, 1});
  near(normed(AtpNorm::kMax), {.5, .75, .5, 1});
  near(normed(AtpNorm::kRank), {1.0 / 6, 2.0 / 3, 1.0 / 6, 1});
  near(normed(AtpNorm::kSigmoid),
       {1 / (1 + std::exp(-.2)), 1 / (1 + std::exp(-.3)), 1 / (1 + std::exp(-.2)), 1 / (1 + std::exp(-.4))});
  // B22: the range is that of the first three, the last is clipped.
  const at::Tensor first_three = at::tensor({1, 1, 1, 0}).to(at::kBool);
  near(normed(AtpNorm::kMinmax, first_three), {0, 1, 0, 1});
  near(normed(AtpNorm::kRank, first_three), {.25, 1, .25, 1});
  near(normed(AtpNorm::kRank, at::tensor({0, 1, 0, 0}).to(at::kBool)), {0, .5, 0, 1});
  for (const AtpNorm norm : {AtpNorm::kMinmax, AtpNorm::kRank})
    near(test::to_doubles(atp_redundancy_score(a * 0 + .3, a * 0 + .3, norm)), {.5, .5, .5, .5});
}

// Scores -> head -> thresholds -> mask, against central differences in every weight and score.
TEST(AtpModules, GradientsAreThoseOfFiniteDifferences) {
  const at::Tensor spatial = atp_spatial_score({2, 3}, Tokens{2, 4}, 3.0).to(at::kDouble);
  const AtpModule head = w1_head(at::kDouble);
  std::vector<at::Tensor> inputs = {doubles(kSelf),
                                    doubles(kCross),
                                    head.mix_weight.clone(),
                                    head.mix_bias.clone(),
                                    head.redundancy_weight.clone(),
                                    head.redundancy_bias.clone(),
                                    head.spatial_weight.clone(),
                                    head.spatial_bias.clone()};
  const at::Tensor weight = doubles({.3, -1, .7, 2, -.4, 1.1});
  const auto loss = [&](const std::vector<at::Tensor>& x) {
    const at::Tensor input = atp_head_input(x[0], x[1], at::arange(6, at::kLong), {2, 3}, AtpHeadInput::kScatter);
    const AtpThresholds thetas = atp_thresholds({x[2], x[3], x[4], x[5], x[6], x[7]}, AtpActivation::kNone, input);
    const at::Tensor red = atp_redundancy_score(x[0], x[1], AtpNorm::kMinmax);
    return (atp_soft_mask(red, spatial, thetas, 10) * weight).sum();
  };
  std::vector<at::Tensor> leaves;
  for (const at::Tensor& x : inputs) leaves.push_back(x.clone().requires_grad_());
  loss(leaves).backward();
  constexpr double kStep = 1e-6;
  for (size_t i = 0; i < inputs.size(); ++i)
    for (int64_t j = 0; j < inputs[i].numel(); ++j) {
      at::Tensor value = inputs[i].view({-1})[j];
      const double at_rest = value.item<double>();
      value.fill_(at_rest + kStep);
      const double above = loss(inputs).item<double>();
      value.fill_(at_rest - kStep);
      const double below = loss(inputs).item<double>();
      value.fill_(at_rest);
      EXPECT_NEAR(leaves[i].grad().view({-1})[j].item<double>(), (above - below) / (2 * kStep), 1e-6) << i << " " << j;
    }
}

TEST(AtpModules, OnlyTheBranchThatWinsHasAGradient) {
  at::Tensor theta_r = at::tensor(0.5, at::kDouble).requires_grad_(),
             theta_s = theta_r.detach().clone().requires_grad_();
  const at::Tensor red = doubles({0.9, 0.1, 0.6}), spatial = doubles({0.2, 0.8, 0.6});  // the last is a tie
  const at::Tensor mask = atp_soft_mask(red, spatial, {theta_r, theta_s}, 10);
  mask.sum().backward();
  const Numbers m = test::to_doubles(mask.detach());
  EXPECT_NEAR(theta_r.grad().item<double>(), -10 * (m[0] * (1 - m[0]) + m[2] * (1 - m[2])), 1e-12);
  EXPECT_NEAR(theta_s.grad().item<double>(), -10 * m[1] * (1 - m[1]), 1e-12);
}

// ---- the policy against a loop ----

std::shared_ptr<const PromptLayout> mixed_prompt() {
  LayoutBuilder builder;
  builder.text(2, -1).image({4, 4}, 0).text(3, 0);
  builder.layout().images.push_back({.grid = {4, 4}, .tiling = GridSize{1, 2}, .crop_boxes = {}});
  builder.patches(1, 0, {4, 4}, {0, 0}, 1);
  for (int64_t row = 0; row < 4; ++row)  // the right column of the right tile is cut away
    builder.patches(1, 1, {1, 4}, {row, 0}, 1).patches(1, 2, {1, 3}, {row, 0}, 1).row_break(1, 1);
  return builder.text(4, 1).build(1);
}

AtpWeights random_weights(uint64_t seed, AtpHeadInput input, AtpActivation activation) {
  AtpWeights weights;
  weights.settings = {
      .layers = {2, 5}, .grid = {4, 4}, .strides = {2, 3}, .head_input = input, .activation = activation};
  const int64_t width = atp_head_width(input, {4, 4});
  for (uint64_t i = 0; i < 2; ++i) {
    const auto random = [&](int64_t rows, int64_t cols, uint64_t which) {
      return test::to_floats(test::random_matrix(rows, cols, seed * 100 + i * 10 + which).values, {rows, cols});
    };
    weights.modules.push_back({random(5, width, 0), random(5, 1, 1).flatten(), random(1, 5, 2),
                               random(1, 1, 3).flatten(), random(1, 5, 4), random(1, 1, 5).flatten()});
  }
  return weights;
}

double at_weight(const at::Tensor& t, int64_t i) {
  return static_cast<double>(t.const_data_ptr<float>()[i]);
}

// theta_r and theta_s of one crop, by loops.
std::pair<double, double> thetas_of(const AtpModule& module, const AtpSettings& settings,
                                    const std::map<int64_t, double>& self, const std::map<int64_t, double>& cross) {
  const int64_t places = settings.grid.rows * settings.grid.cols,
                width = atp_head_width(settings.head_input, settings.grid);
  Numbers input(static_cast<size_t>(width), 0.0);
  for (const auto* scores : {&self, &cross}) {
    const bool is_cross = scores == &cross;
    double sum = 0;
    for (const auto& [place, score] : *scores) {
      sum += score;
      if (settings.head_input == AtpHeadInput::kScatter)
        input[static_cast<size_t>(place + (is_cross ? places : 0))] = score;
    }
    if (settings.head_input == AtpHeadInput::kMean) input[is_cross ? 1 : 0] = sum / static_cast<double>(scores->size());
  }
  Numbers theta = {module.redundancy_bias.item<double>(), module.spatial_bias.item<double>()};
  for (int64_t h = 0; h < module.mix_bias.size(0); ++h) {
    double z = at_weight(module.mix_bias, h);
    for (int64_t i = 0; i < width; ++i)
      z += at_weight(module.mix_weight, h * width + i) * input[static_cast<size_t>(i)];
    if (settings.activation == AtpActivation::kRelu) z = std::max(z, 0.0);
    theta[0] += at_weight(module.redundancy_weight, h) * z;
    theta[1] += at_weight(module.spatial_weight, h) * z;
  }
  return {1 / (1 + std::exp(-theta[0])), 1 / (1 + std::exp(-theta[1]))};
}

// Tokens alive behind each module. A decision closer than `margin` to its threshold makes the case unfit: false.
bool expected_points(const PromptLayout& prompt, const ArraySignals& arrays, const AtpWeights& weights,
                     AtpStrategy strategy, std::vector<Tokens>* points) {
  const Tokens image = test::to_vector(prompt.image), crop = test::to_vector(prompt.crop),
               row = test::to_vector(prompt.grid_row), col = test::to_vector(prompt.grid_col);
  Tokens alive = test::image_tokens_of(prompt);
  const AtpSettings& s = weights.settings;
  for (size_t module = 0; module < s.layers.size(); ++module) {
    const auto& heads = arrays.attention.at(s.layers[module] - 1);
    const auto look = [&](int64_t q, int64_t k) {
      double sum = 0;
      for (const Matrix& a : heads) sum += a.at(q, k) / static_cast<double>(heads.size());
      return sum;
    };
    std::map<std::pair<int64_t, int64_t>, Tokens> crops;
    for (const int64_t t : alive) crops[{image[t], crop[t]}].push_back(t);
    Tokens next;
    for (const auto& [key, tokens] : crops) {
      int64_t last_of_image = 0;
      for (int64_t t = 0; t < prompt.num_tokens; ++t)
        if (image[t] == key.first) last_of_image = t;
      std::map<int64_t, double> self, cross, mean, spatial;
      for (const int64_t k : tokens) {
        const int64_t place = row[k] * s.grid.cols + col[k];
        for (const int64_t q : tokens) self[place] += look(q, k) / static_cast<double>(tokens.size());
        int64_t rows = 0;
        for (int64_t q = last_of_image; q < prompt.num_tokens; ++q)
          if (image[q] < 0) cross[place] += look(q, k), ++rows;
        cross[place] /= static_cast<double>(rows);
        if (s.scores == AtpScores::kSelf) cross[place] = self[place];
        if (s.scores == AtpScores::kCross) self[place] = cross[place];
        mean[k] = (self[place] + cross[place]) / 2;
        for (const int64_t stride : s.strides)
          if (row[k] % stride == 0 && col[k] % stride == 0)
            spatial[k] = std::max(spatial[k], 1 - s.lambda_sample / static_cast<double>(stride * stride));
      }
      double low = 1e9, high = -1e9;
      for (const auto& [t, v] : mean) low = std::min(low, v), high = std::max(high, v);
      const auto [theta_r, theta_s] = thetas_of(weights.modules[module], s, self, cross);
      int64_t best = tokens[0];
      Tokens stay;
      for (const int64_t t : tokens) {
        const double red = high - low < 1e-12 ? 0.5 : (mean[t] - low) / (high - low);
        if (std::abs(red - theta_r) < 1e-4) return false;
        if (mean[t] > mean[best]) best = t;
        const bool by_red = red > theta_r, by_place = spatial[t] > theta_s;
        if (strategy == AtpStrategy::kBoth        ? by_red || by_place
            : strategy == AtpStrategy::kRedundant ? by_red
                                                  : by_place)
          stay.push_back(t);
      }
      if (stay.empty()) stay = {best};
      next.insert(next.end(), stay.begin(), stay.end());
    }
    std::sort(next.begin(), next.end());
    points->push_back(alive = next);
  }
  return true;
}

TEST(Atp, EqualsALoopOverCropsAndModules) {
  const auto prompt = mixed_prompt();
  int compared = 0;
  for (uint64_t seed = 1; seed < 40; ++seed)
    for (const AtpHeadInput input : {AtpHeadInput::kScatter, AtpHeadInput::kMean})
      for (const AtpStrategy strategy : {AtpStrategy::kBoth, AtpStrategy::kRedundant, AtpStrategy::kSpatial}) {
        const ArraySignals arrays = test::random_signals(prompt->num_tokens, 8, 2, 6, seed);
        const auto weights = std::make_shared<AtpWeights>(
            random_weights(seed, input, seed % 2 ? AtpActivation::kNone : AtpActivation::kRelu));
        weights->settings.scores = static_cast<AtpScores>(seed % 3);
        std::vector<Tokens> expected;
        if (!expected_points(*prompt, arrays, *weights, strategy, &expected)) continue;
        const auto points = test::run(make_atp({.weights = weights, .strategy = strategy}), facts(8), prompt, arrays);
        ASSERT_EQ(points.size(), 2U);
        for (size_t i = 0; i < 2; ++i) EXPECT_EQ(points[i].kept, expected[i]) << seed << " " << i;
        ++compared;
      }
  EXPECT_GT(compared, 150);
}

// The mask of training is that of each crop, in the order of the sequence, and the second module's range leaves out
// what the first has masked.
TEST(Atp, SoftMasksFollowTheOrderOfTheSequence) {
  const auto prompt = mixed_prompt();
  const ArraySignals arrays = test::random_signals(prompt->num_tokens, 8, 2, 6, 3);
  const auto policy = make_policy("atp:theta_r=0.4,theta_s=0.6,layers=2:5,strides=2:3");
  const std::vector<Step> steps = policy->steps(facts(8), *prompt);
  ASSERT_EQ(steps.size(), 2U);
  const TokenLayout layout = full_layout(prompt, false);
  at::Tensor earlier;
  for (const Step& step : steps) {
    std::vector<at::Tensor> signals;
    for (const Signal& s : step.needs(layout)) signals.push_back(arrays.answer(s, step.at, layout));
    const at::Tensor mask = step.soft_mask(layout, signals);
    ASSERT_EQ(mask.size(0), layout.num_image_tokens());
    if (step.at.layer == 2) {
      const Verdict verdict = policy->steps(facts(8), *prompt)[0].decide(layout, signals);
      EXPECT_TRUE((mask > 0.5).equal(verdict.always));
    }
    EXPECT_TRUE(((mask > 0) & (mask < 1)).all().item<bool>());
    // Image 0, the first 16 tokens and the first two groups: what an earlier module has masked is out of range.
    const at::Tensor self = signals[0].slice(0, 0, 16), cross = signals[0].slice(0, 16, 32);
    const at::Tensor in_range = earlier.defined() ? earlier.slice(0, 0, 16) > 0.5 : at::Tensor();
    const at::Tensor expected =
        atp_soft_mask(atp_redundancy_score(self, cross, AtpNorm::kMinmax, in_range),
                      atp_spatial_score({4, 4}, Tokens{2, 3}, 3.0), {at::tensor(0.4F), at::tensor(0.6F)}, 10);
    EXPECT_TRUE(mask.slice(0, 0, 16).allclose(expected, 1e-5, 1e-6));
    earlier = earlier.defined() ? earlier * mask : mask;
  }
  ASSERT_TRUE((earlier.slice(0, 0, 16) <= 0.5).any().item<bool>());  // or the range says nothing
}

TEST(Atp, PinsAndFloorsStay) {
  LayoutBuilder builder;
  builder.image({4, 4}, 0).text(2, 0).image({4, 4}, 1).text(2, 1).pin({15, 30});
  const auto prompt = builder.build(1);
  for (uint64_t seed = 1; seed < 6; ++seed) {
    const ArraySignals arrays = test::random_signals(prompt->num_tokens, 8, 2, 6, seed);
    const Tokens kept = kept_at_end(make_policy("atp:theta_r=1,theta_s=1"), facts(8), prompt, arrays);
    EXPECT_TRUE(std::ranges::binary_search(kept, 15) && std::ranges::binary_search(kept, 30));
    EXPECT_LE(kept.size(), 4U);  // the pinned ones and the best of each image
    const Tokens more = kept_at_end(make_policy("atp:theta_r=1,theta_s=1,min_per_image=5"), facts(8), prompt, arrays);
    EXPECT_EQ(std::ranges::count_if(more, [](int64_t t) { return t < 16; }), 5);
    EXPECT_EQ(more.size(), 10U);
  }
}

TEST(Atp, LayersFollowTheDepthAndZeroThresholdsPruneNothing) {
  const auto prompt = two_by_three();
  const auto layers = [&](int depth) {
    std::vector<int> found;
    for (const ActPoint& p : test::points_of(make_policy("atp:theta_r=0,theta_s=0"), facts(depth), *prompt))
      found.push_back(p.layer);
    return found;
  };
  EXPECT_EQ(layers(32), (std::vector<int>{4, 14, 24}));
  EXPECT_EQ(layers(40), (std::vector<int>{5, 18, 30}));
  EXPECT_EQ(layers(8), (std::vector<int>{1, 4, 6}));
  EXPECT_EQ(test::run(make_policy("atp:theta_r=0,theta_s=0,layers=1,norm=none"), facts(4), prompt, w1())[0].kept,
            (Tokens{0, 1, 2, 3, 4, 5}));
  EXPECT_TRUE(
      test::points_of(make_policy("atp:theta_r=0,theta_s=0"), facts(8), *LayoutBuilder().text(3, 0).build(0)).empty());
}

TEST(Atp, WhatCannotBeServedIsRefused) {
  const auto prompt = two_by_three();
  for (const char* spec : {"atp", "atp:theta_r=0.5", "atp:theta_r=0.5,theta_s=1.5", "atp:theta_r=0.1:0.2,theta_s=0.1",
                           "atp:theta_r=0.5,theta_s=0.5,strides=0", "atp:theta_r=0.5,theta_s=0.5,min_keep=-1",
                           "atp:theta_r=0.5,theta_s=0.5,norm=mean", "atp:theta_r=0.5,theta_s=0.5,keep_ratio=1/2"})
    EXPECT_THROW(make_policy(spec), Error) << spec;
  for (const char* layers : {"0", "3:2", "9", "2:2"})
    EXPECT_THROW(
        test::points_of(make_policy("atp:theta_r=0.5,theta_s=0.5,layers=" + std::string(layers)), facts(8), *prompt),
        Error)
        << layers;
  EXPECT_THROW(
      test::points_of(make_policy("atp:theta_r=0.5,theta_s=0.5"), facts(8), *LayoutBuilder().image({2, 2}, 0).build(0)),
      Error);
  const auto weights = std::make_shared<AtpWeights>(random_weights(1, AtpHeadInput::kScatter, AtpActivation::kNone));
  EXPECT_THROW(test::points_of(make_atp({.weights = weights}), facts(8), *prompt), Error);  // a grid of 4 x 4
  EXPECT_THROW(make_atp({.weights = weights, .theta_r = {0.5}}), Error);
}

TEST(Atp, SpecsAreWrittenBack) {
  for (const char* spec : {"atp:theta_r=0.5,theta_s=0.25", "atp:theta_r=0.5:0.1:1e-05,theta_s=0.25",
                           "atp:theta_r=0.5,theta_s=0.25,layers=2:5,strides=2,lambda_sample=1.5,norm=rank,min_keep=0,"
                           "strategy=spatial,min_per_image=2"})
    EXPECT_EQ(make_policy(spec)->spec(), spec);
}

}  // namespace
}  // namespace espalier
