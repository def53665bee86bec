// SPDX-License-Identifier: Apache-2.0
#include "base/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace espalier {
namespace {

using Said = std::vector<std::pair<LogLevel, std::string>>;

Said said_at(LogLevel lowest) {
  Said said;
  const Log log(lowest, [&](LogLevel level, std::string_view message) { said.emplace_back(level, message); });
  log.verbose("loaded");
  log.warning("odd");
  return said;
}

TEST(Log, SaysWhatIsAtLeastItsLevel) {
  EXPECT_EQ(said_at(LogLevel::kVerbose), (Said{{LogLevel::kVerbose, "loaded"}, {LogLevel::kWarning, "odd"}}));
  EXPECT_EQ(said_at(LogLevel::kWarning), (Said{{LogLevel::kWarning, "odd"}}));
  EXPECT_EQ(said_at(LogLevel::kSilent), Said{});
}

TEST(Log, WithoutASinkWritesToStderr) {
  testing::internal::CaptureStderr();
  const Log log;
  log.verbose("loaded");
  log.warning("odd");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "espalier: warning: odd\n");
}

// A sink need not know of threads: copies of a log take turns.
TEST(Log, CallsTheSinkOneAtATime) {
  int running = 0, most = 0, calls = 0;
  const Log log(LogLevel::kWarning, [&](LogLevel, std::string_view) {
    most = std::max(most, ++running);
    std::this_thread::yield();
    ++calls;
    --running;
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([log] {
      for (int j = 0; j < 500; ++j) log.warning("x");
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(calls, 2000);
  EXPECT_EQ(most, 1);
}

}  // namespace
}  // namespace espalier
