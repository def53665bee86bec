// SPDX-License-Identifier: Apache-2.0
// Persistence against the vectors of docs/specs/persistence.md. Loops on recorded runs:
// tests/runtime/policy_loops_test.
#include "espalier/policies/persistence.h"

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

// Four patches, then one word; the rows of that word and of three generated tokens, by layer, over the patches.
ArraySignals signals_of(const std::vector<std::vector<std::vector<double>>>& rows) {
  ArraySignals signals;
  for (size_t layer = 0; layer < rows.size(); ++layer) {
    Matrix prompt(5, 5), answer(3, 8);
    for (int64_t t = 0; t < 4; ++t) {
      prompt.at(4, t) = rows[layer][0][t];
      for (int64_t g = 0; g < 3; ++g) answer.at(g, t) = rows[layer][static_cast<size_t>(g + 1)][t];
    }
    signals.attention[static_cast<int>(layer)] = {prompt, prompt};
    signals.generated[static_cast<int>(layer)] = {answer, answer};
  }
  return signals;
}

// Kept by each ask of each layer, in the order of the asks.
std::vector<Tokens> kept(const std::string& options, const ArraySignals& signals) {
  const auto prompt = LayoutBuilder().image({1, 4}, 0).text(1, 0).build(0);
  std::vector<Tokens> all;
  for (const PointTrace& p : test::run(make_policy("persistence:layer=0," + options), facts(2), prompt, signals))
    all.push_back(p.kept_per_head.at(1));
  return all;
}

const ArraySignals& worked() {
  static const ArraySignals signals = signals_of({{{.5, .25, .125, 0}, {0, 0, 0, .5}, {0, 0, .5, .25}, {0, .75, 0, 0}},
                                                  {{0, 0, .25, .25}, {.25, 0, 0, .5}, {0, .25, 0, 0}, {0, .5, 0, 0}}});
  return signals;
}

TEST(Persistence, VectorsOfTheSpecification) {
  // I after each vote: (.5 .25 .125 0), (.5 .25 .375 .25); (.5 .25 .375 .75), (.75 .25 .375 1.25);
  // (.75 .25 .875 1.5), (.75 .5 .875 1.5); (.75 1.25 .875 1.5), (.75 1.75 .875 1.5)
  EXPECT_EQ(kept("num_kept=2,every=1,revival=yes", worked()),
            (std::vector<Tokens>{{0, 1}, {0, 2}, {0, 3}, {0, 3}, {2, 3}, {2, 3}, {1, 3}, {1, 3}}));
  // Halved from ask to ask: (.5 .25 .125 0), (.5 .25 .375 .25); (.25 .125 .3125 .75), (.5 .125 .1875 1.125);
  // (.375 .0625 .65625 1.125), (.25 .3125 .59375 .8125); (.1875 1.03125 .328125 .5625), (.125 1.40625 .296875 .40625)
  EXPECT_EQ(kept("num_kept=2,every=1,revival=yes,decay=0.5", worked()),
            (std::vector<Tokens>{{0, 1}, {0, 2}, {2, 3}, {0, 3}, {2, 3}, {2, 3}, {1, 3}, {1, 3}}));
}

// Both layers free 3 behind prefill, and what is freed gets no more votes there.
TEST(Persistence, TheAnswerTakesThePlacesOfWhatIsFreed) {
  EXPECT_EQ(kept("num_kept=3,every=1", worked()),
            (std::vector<Tokens>{{0, 1, 2}, {0, 1, 2}, {0, 2}, {0, 2}, {2}, {2}, {}, {}}));
}

TEST(Persistence, VotesAreMeansSinceTheAskBefore) {
  // With token 2: votes (0 0 .25 .375) and (.125 .125 0 .25).
  EXPECT_EQ(kept("num_kept=2,every=2,revival=yes", worked()), (std::vector<Tokens>{{0, 1}, {0, 2}, {2, 3}, {0, 3}}));
}

TEST(Persistence, PinsStayAndSpecsComeBack) {
  const auto prompt = LayoutBuilder().image({1, 4}, 0).text(1, 0).pin({1}).build(0);
  for (const PointTrace& p :
       test::run(make_policy("persistence:layer=0,num_kept=2,every=1"), facts(2), prompt, worked()))
    EXPECT_TRUE(std::ranges::binary_search(p.kept_per_head.at(0), 1)) << p.generated;
  EXPECT_EQ(make_policy("persistence:keep_ratio=1/3,every=2,revival=yes")->spec(),
            "persistence:keep_ratio=1/3,every=2,revival=yes");
  for (const char* spec : {"persistence", "persistence:keep_ratio=1/2,every=0", "persistence:keep_ratio=1/2,decay=1.5",
                           "persistence:keep_ratio=1/2,layer=-1"})
    EXPECT_THROW(test::points_of(make_policy(spec), facts(4), *prompt), Error) << spec;
}

}  // namespace
}  // namespace espalier
