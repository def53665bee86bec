// SPDX-License-Identifier: Apache-2.0
// VisionPulse against the vectors of docs/specs/visionpulse.md. Loops on recorded runs:
// tests/runtime/policy_loops_test.
#include "espalier/policies/visionpulse.h"

#include <gtest/gtest.h>

#include "espalier/error.h"
#include "tests/support/array_signals.h"

namespace espalier {
namespace {

using test::ArraySignals;
using test::facts;
using test::LayoutBuilder;
using test::Matrix;
using Tokens = std::vector<int64_t>;

// Four patches, one word, two generated tokens; head by head.
ArraySignals worked() {
  ArraySignals signals;
  const double prompt[2][5] = {{.4, .1, .1, .1, .3}, {.1, .1, .1, .1, .6}};
  const double answer[2][2][7] = {{{.01, .01, .01, .01, .06, .9, 0}, {.05, .05, .4, .2, .1, .1, .1}},
                                  {{.01, .03, .01, .01, .04, .9, 0}, {.05, .05, .2, .1, .2, .2, .2}}};
  for (int h = 0; h < 2; ++h) {
    Matrix p(5, 5), a(2, 7);
    for (int64_t c = 0; c < 5; ++c) p.at(4, c) = prompt[h][c];
    for (int64_t g = 0; g < 2; ++g)
      for (int64_t c = 0; c < 7; ++c) a.at(g, c) = answer[h][g][c];
    for (const int layer : {0, 1}) signals.attention[layer].push_back(p), signals.generated[layer].push_back(a);
  }
  return signals;
}

std::vector<PointTrace> points(const std::string& options) {
  const auto prompt = LayoutBuilder().image({1, 4}, 0).text(1, 0).build(0);
  return test::run(make_policy("visionpulse:layer=0," + options), facts(2), prompt, worked());
}

std::vector<Tokens> kept(const std::string& options) {
  std::vector<Tokens> all;
  for (const PointTrace& p : points(options)) all.push_back(p.kept_per_head.at(0));
  return all;
}

TEST(VisionPulse, VectorsOfTheSpecification) {
  EXPECT_EQ(kept("tau=0.5,least=0,most=1"), (std::vector<Tokens>{{0, 1}, {0, 1}, {1}, {1}, {0, 2, 3}, {0, 2, 3}}));
  EXPECT_EQ(kept("tau=0.5,least=0,most=1/4"), (std::vector<Tokens>{{0}, {0}, {1}, {1}, {2}, {2}}));
  EXPECT_EQ(kept("tau=0.5,least=3/4,most=1").at(2), (Tokens{0, 1, 2}));
  EXPECT_EQ(kept("tau=0.5,least=0,most=1,every=2"), (std::vector<Tokens>{{0, 1}, {0, 1}, {0, 2, 3}, {0, 2, 3}}));
}

TEST(VisionPulse, TheMassIsTheLargestOverHeads) {
  const std::vector<PointTrace> all = points("tau=0.5,least=0,most=1");
  const auto mass = [&](size_t i) { return all[i].notes.at(0).second.at(0); };
  EXPECT_NEAR(mass(0), .19 / .28, 1e-6);
  EXPECT_NEAR(mass(2), .0012 / (.0012 + .04 * .04 + .81), 1e-6);
  EXPECT_NEAR(mass(4), .205 / (.205 + .03), 1e-6);
  EXPECT_NEAR(points("tau=1,least=0,most=1")[0].notes.at(0).second.at(0), .7, 1e-6);
}

// In a head that does not look at a token at all, it counts as the smallest number.
TEST(VisionPulse, AProbabilityOfZeroIsNoError) {
  ArraySignals signals = worked();
  for (auto& [layer, heads] : signals.attention) heads[0].at(4, 1) = 0;
  const auto prompt = LayoutBuilder().image({1, 4}, 0).text(1, 0).build(0);
  EXPECT_EQ(test::run(make_policy("visionpulse:layer=0,tau=0.5,least=3/4,most=1"), facts(2), prompt, signals)
                .at(0)
                .kept_per_head.at(0),
            (Tokens{0, 2, 3}));
}

TEST(VisionPulse, TheAnchorLiesAsDeepAsTheirs) {
  const auto prompt = LayoutBuilder().image({1, 4}, 0).text(1, 0).build(0);
  EXPECT_EQ(test::points_of(make_policy("visionpulse"), facts(36), *prompt).at(0).layer, 17);
  EXPECT_EQ(test::points_of(make_policy("visionpulse"), facts(8), *prompt).at(0).layer, 4);
  EXPECT_EQ(test::points_of(make_policy("visionpulse"), facts(8), *prompt).size(), 4U);
  for (const char* spec :
       {"visionpulse:least=1/2,most=1/3", "visionpulse:tau=0", "visionpulse:every=0", "visionpulse:layer=9"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(8), *prompt), Error) << spec;
}

}  // namespace
}  // namespace espalier
