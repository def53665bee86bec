// SPDX-License-Identifier: Apache-2.0
// What becomes of a team of OpenMP threads where other programs want the processors too. libgomp's threads wait for
// each other by spinning, some milliseconds long; if the one they wait for was put off its processor, all of that is
// lost, at each of the hundreds of barriers of a token (measured: 7 to 30 times the time). libgomp spins a thousandth
// of that as soon as it has more threads than there are processors (gomp_managed_threads in its wait.h and config.h).
// So as long as the process is put off its processors again and again, a second, idle team is held open.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

namespace espalier {

// Whether the machine is crowded, from how long the threads of the team could have run and did not. While it is taken
// to be crowded that says little: threads that sleep and are woken put each other off. So from time to time the machine
// is taken to be free again, ever more seldom while that proves wrong.
class Crowding {
 public:
  // `is_crowded`: what is believed at first.
  explicit Crowding(bool is_crowded) : is_crowded_(is_crowded) {}

  // `put_off`: seconds for which threads of the team waited for a processor since they began; `now`: seconds, a tenth
  // or more after the last call.
  bool update(double now, double put_off);

 private:
  static constexpr double kFirstWait = 0.5, kLongestWait = 30.0;  // seconds

  double last_ = -1.0;  // the last call, and what it was told
  double put_off_ = 0.0;
  double changed_ = 0.0;      // when what is believed last changed
  double wait_ = kFirstWait;  // how long it is taken to be crowded before the next try
  bool is_crowded_;
};

// For the thread that computes.
class SpinGuard {
 public:
  SpinGuard();
  ~SpinGuard();

  void look() noexcept;  // after each step; ten times a second it reads a line per thread of the team from /proc

 private:
  class IdleTeam;
  Crowding crowding_;
  std::chrono::steady_clock::time_point began_;
  double next_ = 0.0;        // seconds after began_
  std::vector<int> thread_;  // the team's, as the system numbers them
  std::unique_ptr<IdleTeam> team_;
};

}  // namespace espalier
