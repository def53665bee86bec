// SPDX-License-Identifier: Apache-2.0
// Wall-clock time of a stage that is left and entered again.
#pragma once

#include <chrono>

namespace espalier {

class Stopwatch {
 public:
  enum Start { kRunning, kStopped };
  explicit Stopwatch(Start start_now = kRunning) {
    if (start_now == kRunning) start();
  }

  void start() { began_ = Clock::now(); }
  void stop() { total_ += Clock::now() - began_; }
  double milliseconds() const { return std::chrono::duration<double, std::milli>(total_).count(); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point began_;
  Clock::duration total_{};
};

}  // namespace espalier
