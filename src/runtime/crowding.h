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

namespace espalier {

// Whether the machine is crowded, from how often the process was put off a processor that it had not given up.
class Crowding {
 public:
  // `is_crowded`: what is believed until the first windows have shown it.
  explicit Crowding(bool is_crowded) : is_crowded_(is_crowded) {}

  // `preemptions`: since the start of the process; `seconds`: now. Looks at windows of a tenth of a second.
  bool update(double seconds, int64_t preemptions);

 private:
  double window_began_ = -1.0;
  int64_t preemptions_before_ = 0;
  int quiet_windows_ = 0;
  bool is_crowded_;
};

// For the thread that computes.
class SpinGuard {
 public:
  SpinGuard();
  ~SpinGuard();

  void look();  // behind each step; mostly two system calls

 private:
  class IdleTeam;
  Crowding crowding_;
  std::chrono::steady_clock::time_point began_;
  std::unique_ptr<IdleTeam> team_;
};

}  // namespace espalier
