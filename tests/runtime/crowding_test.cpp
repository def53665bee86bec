// SPDX-License-Identifier: Apache-2.0
#include "runtime/crowding.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

struct Watched {
  Crowding crowding{false};
  double now = 0.0;
  double preemptions = 0.0;

  // Looks every 20 ms; what it was told last.
  bool after(double seconds, double preemptions_per_second) {
    bool is_crowded = false;
    for (const double end = now + seconds; now < end; now += 0.02, preemptions += 0.02 * preemptions_per_second)
      is_crowded = crowding.update(now, static_cast<int64_t>(preemptions));
    return is_crowded;
  }
};

TEST(Crowding, SeesANeighbourAndSeesItGo) {
  Watched watched;
  EXPECT_FALSE(watched.after(3.0, 5.0));
  EXPECT_TRUE(watched.after(1.0, 300.0));
  EXPECT_TRUE(watched.after(3.0, 100.0));
  EXPECT_TRUE(watched.after(1.0, 0.0));  // a pause of the neighbour's
  EXPECT_FALSE(watched.after(3.0, 5.0));
}

// In between nothing changes: neither does a machine with chores become crowded, nor a crowded one free.
TEST(Crowding, ChangesItsMindSlowly) {
  Watched watched;
  EXPECT_FALSE(watched.after(10.0, 40.0));
  EXPECT_TRUE(watched.after(1.0, 200.0));
  EXPECT_TRUE(watched.after(10.0, 40.0));
}

TEST(Crowding, LetsGoOfWhatItBelievedAtFirst) {
  Watched watched;
  watched.crowding = Crowding(true);
  EXPECT_TRUE(watched.after(1.0, 5.0));
  EXPECT_FALSE(watched.after(3.0, 5.0));
}

// Counters that stood high before the first look are no news.
TEST(Crowding, CountsFromTheFirstLook) {
  Watched watched;
  watched.preemptions = 1e6;
  EXPECT_FALSE(watched.after(2.0, 5.0));
}

}  // namespace
}  // namespace espalier
