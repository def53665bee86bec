// SPDX-License-Identifier: Apache-2.0
#include "runtime/crowding.h"

#include <gtest/gtest.h>

namespace espalier {
namespace {

struct Watched {
  Crowding crowding{false};
  double now = 0.0;
  double put_off = 0.0;

  // Looks every tenth of a second, `share` of which threads waited; what it was told last.
  bool after(double seconds, double share) {
    bool is_crowded = false;
    for (const double end = now + seconds; now < end; now += 0.1, put_off += 0.1 * share)
      is_crowded = crowding.update(now, put_off);
    return is_crowded;
  }
};

constexpr double kChores = 0.1, kNeighbour = 0.5;

TEST(Crowding, SeesANeighbourAndSeesItGo) {
  Watched watched;
  EXPECT_FALSE(watched.after(10.0, kChores));
  EXPECT_TRUE(watched.after(0.5, kNeighbour));
  EXPECT_FALSE(watched.after(3.0, kChores));
}

// Threads that sleep and wake put each other off, for longer than a neighbour would.
TEST(Crowding, DoesNotTakeItsOwnThreadsForANeighbour) {
  Watched watched;
  watched.crowding = Crowding(true);
  bool is_crowded = true;
  while (is_crowded && watched.now < 2.0) is_crowded = watched.after(0.1, 0.9);
  EXPECT_FALSE(is_crowded);
  EXPECT_FALSE(watched.after(10.0, kChores));
}

// A neighbour that stays: tried again every half minute in the end, for a tenth of a second.
TEST(Crowding, TriesEverMoreSeldom) {
  Watched watched;
  watched.after(120.0, kNeighbour);
  int free = 0;
  for (int i = 0; i < 600; ++i) free += watched.after(0.1, kNeighbour) ? 0 : 1;
  EXPECT_GE(free, 1);
  EXPECT_LE(free, 3);
}

// Once the neighbour is gone for good, the next one is not waited out for half a minute.
TEST(Crowding, ForgetsOldNeighbours) {
  Watched watched;
  watched.after(120.0, kNeighbour);
  EXPECT_FALSE(watched.after(100.0, kChores));
  EXPECT_TRUE(watched.after(0.5, kNeighbour));
  EXPECT_FALSE(watched.after(2.0, kChores));
}

// What was counted before the first look is no news.
TEST(Crowding, CountsFromTheFirstLook) {
  Watched watched;
  watched.put_off = 1e6;
  EXPECT_FALSE(watched.after(2.0, kChores));
}

}  // namespace
}  // namespace espalier
