// SPDX-License-Identifier: Apache-2.0
#include "runtime/crowding.h"

#include <ATen/Parallel.h>
#include <omp.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace espalier {

bool Crowding::update(double seconds, int64_t preemptions) {
  constexpr double kWindow = 0.1;
  // An idle machine's own chores put a thread off a few times a second; a neighbour on its processor does so at the
  // end of each of its time slices, which last milliseconds.
  constexpr double kCrowded = 60.0, kQuiet = 20.0;  // per second
  constexpr int kQuietWindows = 20;
  if (window_began_ < 0.0) {
    window_began_ = seconds;
    preemptions_before_ = preemptions;
  }
  const double passed = seconds - window_began_;
  if (passed < kWindow) return is_crowded_;
  const double rate = static_cast<double>(preemptions - preemptions_before_) / passed;
  window_began_ = seconds;
  preemptions_before_ = preemptions;
  quiet_windows_ = rate < kQuiet ? quiet_windows_ + 1 : 0;
  if (rate > kCrowded) is_crowded_ = true;
  if (quiet_windows_ >= kQuietWindows) is_crowded_ = false;
  return is_crowded_;
}

namespace {

bool is_loaded() {
  double average = 0.0;  // of the last minute
  return getloadavg(&average, 1) == 1 && average > 0.5 * omp_get_num_procs();
}

}  // namespace

// A thread that leads a team with nothing to do, until it goes.
class SpinGuard::IdleTeam {
 public:
  explicit IdleTeam(int threads) : leader_([this, threads] { lead(threads); }) {}
  ~IdleTeam() {
    {
      const std::scoped_lock lock(mutex_);
      is_over_ = true;
    }
    over_.notify_all();
    leader_.join();
  }

 private:
  void lead(int threads) {
    std::atomic<int> present = 0;  // the compiler would leave out a region that does nothing
#pragma omp parallel num_threads(threads)
    ++present;
    std::unique_lock lock(mutex_);
    over_.wait(lock, [this] { return is_over_; });
  }

  std::mutex mutex_;
  std::condition_variable over_;
  bool is_over_ = false;
  std::thread leader_;
};

// Believes the system's load average at first: a short command would be over before a window has passed.
SpinGuard::SpinGuard() : crowding_(is_loaded()), began_(std::chrono::steady_clock::now()) {
  look();
}
SpinGuard::~SpinGuard() = default;

void SpinGuard::look() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const std::chrono::duration<double> now = std::chrono::steady_clock::now() - began_;
  const bool is_crowded = crowding_.update(now.count(), usage.ru_nivcsw) && at::get_num_threads() > 1;
  if (is_crowded == (team_ != nullptr)) return;
  // Both teams together: one more than there are processors.
  const int threads = std::max(2, omp_get_num_procs() - at::get_num_threads() + 2);
  team_ = is_crowded ? std::make_unique<IdleTeam>(threads) : nullptr;
}

}  // namespace espalier
