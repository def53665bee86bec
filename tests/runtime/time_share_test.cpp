// SPDX-License-Identifier: Apache-2.0
// How a queue divides its time, in queues that are played through: nobody is late who need not be, more time where
// fewer wait, and nothing that swings.
#include "runtime/time_share.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <random>
#include <vector>

namespace espalier {
namespace {

TEST(TimeShare, IsTheLargestEqualShareInTime) {
  const auto share = [](std::vector<Waiting> queue) { return time_share(queue); };
  EXPECT_EQ(share({{.left_ms = 90.0}}), 90);
  EXPECT_EQ(share({{.left_ms = 90.0}, {.left_ms = 90.0}, {.left_ms = 90.0}}), 30);
  EXPECT_EQ(share({{.left_ms = 30.0}, {.left_ms = 90.0}}), 30);
  EXPECT_EQ(share({{}, {.left_ms = 90.0}}), 45);  // one who has no time to keep takes its share, too
  EXPECT_TRUE(std::isinf(share({{}, {}})));
  EXPECT_EQ(share({{.left_ms = -5.0}}), -5);
}

// One that cannot be in time takes nothing from those before it; the front takes what it has.
TEST(TimeShare, WhoIsLateAnywayHoldsNobodyUp) {
  const std::vector<Waiting> queue = {{.left_ms = 90.0, .least_ms = 10}, {.left_ms = 15.0, .least_ms = 10}};
  EXPECT_EQ(time_share(queue), 90);
  const std::vector<Waiting> possible = {{.left_ms = 90.0, .least_ms = 10}, {.left_ms = 25.0, .least_ms = 10}};
  EXPECT_EQ(time_share(possible), 12.5);
}

// One server, requests that take what they are given between `least` and `most`, times `error`: what the model of costs
// is off by.
struct Served {
  double given = 0, waited = 0, first_token = 0;
};
std::vector<Served> play(const std::vector<double>& arrivals, double target, double least, double most,
                         double error = 1) {
  std::vector<Served> served;
  std::deque<double> waiting;
  double now = 0;
  size_t next = 0;
  const auto arrive = [&] {
    while (next < arrivals.size() && arrivals[next] <= now) waiting.push_back(arrivals[next++]);
  };
  while (served.size() < arrivals.size()) {
    arrive();
    if (waiting.empty()) {
      now = arrivals[next];
      continue;
    }
    std::vector<Waiting> queue;
    for (const double arrived : waiting) queue.push_back({.left_ms = arrived + target - now, .least_ms = least});
    Served& one = served.emplace_back();
    one.waited = now - waiting.front();
    one.given = std::clamp(time_share(queue), least, most);
    now += error * one.given;
    one.first_token = now - waiting.front();
    waiting.pop_front();
  }
  return served;
}

std::vector<double> every(double period, size_t count) {
  std::vector<double> arrivals;
  for (size_t i = 0; i < count; ++i) arrivals.push_back(period * static_cast<double>(i));
  return arrivals;
}

// Steady load, from an empty queue: what requests are given falls (or stays) until it is the time between two, and no
// request gets more than the one before it.
TEST(TimeShare, SettlesWithoutSwinging) {
  for (const double period : {15.0, 20.0, 40.0, 60.0, 99.0, 130.0}) {
    SCOPED_TRACE(period);
    const std::vector<Served> served = play(every(period, 400), 250, 10, 120);
    int rises = 0;
    for (size_t i = 1; i < served.size(); ++i) rises += served[i].given > served[i - 1].given + 1e-9;
    EXPECT_EQ(rises, 0);
    EXPECT_NEAR(served.back().given, std::min(period, 120.0), 1e-3);
    for (const Served& one : served) EXPECT_LE(one.first_token, 250 + 1e-9);
  }
}

// The model of costs is off by a tenth, either way: what is given still settles, and misses by a tenth at most.
TEST(TimeShare, SettlesWhereCostsAreOff) {
  for (const double error : {0.9, 1.1}) {
    SCOPED_TRACE(error);
    const std::vector<Served> served = play(every(40, 400), 250, 10, 120, error);
    for (size_t i = 300; i < 380; ++i)  // behind the last the queue empties
      EXPECT_NEAR(served[i].given, 40 / error, 0.01 * 40) << i;
    for (const Served& one : served) EXPECT_LE(one.first_token, 1.1 * 250);
  }
}

// More than can be served: everyone gets the least, the queue grows, and when the burst is over it goes back to most.
TEST(TimeShare, BurstsComeAndGo) {
  std::vector<double> arrivals(20, 0.0);
  for (int i = 0; i < 10; ++i) arrivals.push_back(2000.0 + 500 * i);
  const std::vector<Served> served = play(arrivals, 250, 10, 120);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_NEAR(served[i].given, 250.0 / 20, 1e-9) << i;  // all of the burst alike
    EXPECT_LE(served[i].first_token, 250 + 1e-9) << i;
  }
  for (size_t i = 20; i < served.size(); ++i) EXPECT_EQ(served[i].given, 120) << i;
}

// A shorter queue, more time: with random arrivals, requests behind which more wait never get more than one that is in
// the same place with fewer behind it.
TEST(TimeShare, ShorterQueueMoreTime) {
  std::mt19937 draws(5);
  std::uniform_real_distribution<double> left(20, 250);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<Waiting> queue;
    double share = 1e9;
    for (int n = 0; n < 12; ++n) {
      queue.push_back({.left_ms = left(draws), .least_ms = 1});
      EXPECT_LE(time_share(queue), share);
      share = time_share(queue);
    }
  }
}

// Random load that the server can just carry: nearly all are in time, where giving everyone the most would be late.
TEST(TimeShare, KeepsTimesUnderRandomLoad) {
  std::mt19937 draws(3);
  std::exponential_distribution<double> gap(1.0 / 60);
  std::vector<double> arrivals = {0};
  for (int i = 0; i < 2000; ++i) arrivals.push_back(arrivals.back() + gap(draws));
  const auto late = [&](double least) {
    const std::vector<Served> served = play(arrivals, 250, least, 120);
    return std::ranges::count_if(served, [](const Served& s) { return s.first_token > 250 + 1e-9; });
  };
  EXPECT_LE(late(/*least=*/10), 20);
  EXPECT_GE(late(/*least=*/120), 1000);  // nothing to give away
}

}  // namespace
}  // namespace espalier
