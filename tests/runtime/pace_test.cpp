// SPDX-License-Identifier: Apache-2.0
// How fast the machine is now: what is learned from requests, and what an engine expects of the next ones by it.
#include "runtime/pace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/spread.h"
#include "espalier/engine.h"
#include "runtime/time_share.h"
#include "tests/runtime/made_up_costs.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

TEST(Pace, IsTheMedianOfTheLastRequests) {
  Pace pace;
  EXPECT_EQ(pace.now(), 1);
  pace.saw(100, 150);
  pace.saw(10, 15);
  EXPECT_EQ(pace.now(), 1);  // too few to tell
  pace.saw(50, 75);
  EXPECT_DOUBLE_EQ(pace.now(), 1.5);
  pace.saw(100, 390);  // one that was disturbed
  EXPECT_DOUBLE_EQ(pace.now(), 1.5);
  for (int i = 0; i < 7; ++i) pace.saw(100, 80);  // the machine is faster again
  EXPECT_DOUBLE_EQ(pace.now(), 0.8);
}

TEST(Pace, CostsOfAnotherMachineAreNoPace) {
  Pace pace;
  for (int i = 0; i < 9; ++i) {
    pace.saw(1e9, 1);
    pace.saw(1, 1e9);
    pace.saw(1, 0);
  }
  EXPECT_EQ(pace.now(), 1);
}

// Steady load on a machine that takes 1.4 times what its costs say, and errs by 5 % of what little it is given: what
// requests get settles at the time between two, and after the first ones nobody is late.
TEST(Pace, SettlesUnderLoad) {
  constexpr double kPeriod = 40, kTarget = 250, kLeast = 10, kMost = 120;
  Pace pace;
  double now = 0;
  std::vector<double> given;
  for (size_t served = 0; served < 400; ++served) {
    now = std::max(now, kPeriod * static_cast<double>(served));
    std::vector<Waiting> queue;
    for (size_t i = served; i < 400 && kPeriod * static_cast<double>(i) <= now; ++i)
      queue.push_back({.left_ms = kPeriod * static_cast<double>(i) + kTarget - now, .least_ms = pace.now() * kLeast});
    const double by_costs = std::clamp(time_share(queue) / pace.now(), kLeast, kMost);
    const double taken = by_costs * (1.4 + 0.05 * (kMost - by_costs) / kMost);
    now += taken;
    pace.saw(by_costs, taken);
    given.push_back(taken);
    if (served > 10) {
      EXPECT_LE(now - kPeriod * static_cast<double>(served), 1.01 * kTarget) << served;
    }
  }
  for (size_t i = 200; i < 390; ++i) EXPECT_NEAR(given[i], kPeriod, 0.02 * kPeriod) << i;  // then the queue empties
}

// Costs that say half of what requests take: after a few of them the engine expects what they take. A picture that was
// seen before tells nothing, since it costs less.
TEST(Pace, AnEngineLearnsItFromRequestsWithATime) {
  const std::filesystem::path folder = test::golden_folder() / "llava15";
  const auto ask = [](const Engine& engine, uint64_t picture, const std::string& policy) {
    Request request;
    request.prompt = RawPrompt{"USER: <image>\nWhat? ASSISTANT:",
                               {{.image = test::picture(640, 480, static_cast<uint32_t>(picture))}}};
    request.policy = policy;
    request.options.max_new_tokens = 1;
    request.options.ignore_eos = true;
    return engine.generate(request).stats;
  };
  const auto taken = [](const Stats& s) { return s.encode_ms + s.select_ms + s.prefill_ms; };
  std::vector<double> whole;
  const Engine plain = Engine::load(folder, {.dtype = ComputeDtype::kFloat32});
  for (uint64_t i = 0; i < 9; ++i) whole.push_back(taken(ask(plain, i, "none")));
  const test::ScratchFolder scratch;
  const double half = spread_of(whole).median / 2;
  const std::string costs = costs_json(
      test::made_up_costs(folder, {.encode = {{"request", half}}, .prefill = {}, .select = {{"divprune", {}}}}));
  const Engine engine = Engine::load(
      folder,
      {.dtype = ComputeDtype::kFloat32, .costs = scratch.write("costs.json", costs), .image_cache_bytes = 1 << 20});
  std::vector<double> expected, came;
  for (uint64_t i = 0; i < 12; ++i) {
    const Stats stats = ask(engine, 100 + i, "divprune:ttft=10s");
    expected.push_back(*stats.solved->predicted_ms);
    came.push_back(taken(stats));
  }
  EXPECT_NEAR(expected[0], half, 1e-3 * half);
  EXPECT_GT(expected.back(), 0.7 * spread_of(came).median);
  EXPECT_LT(expected.back(), 1.4 * spread_of(came).median);
  const double before = *ask(engine, 111, "divprune:ttft=10s").solved->predicted_ms;
  for (int i = 0; i < 8; ++i) EXPECT_EQ(*ask(engine, 111, "divprune:ttft=10s").solved->predicted_ms, before);
}

}  // namespace
}  // namespace espalier
