// SPDX-License-Identifier: Apache-2.0
#include "runtime/crowding.h"

#include <ATen/Parallel.h>
#include <omp.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>

namespace espalier {

bool Crowding::update(double now, double put_off) {
  // A neighbour on one of the processors takes half of it (measured on two: 0.63 to 0.93), an idle machine's own chores
  // and short visitors little (0.00 to 0.25).
  constexpr double kCrowded = 0.3;  // seconds per second, of all threads together
  const bool is_first = last_ < 0.0;
  const double share = is_first ? 0.0 : (put_off - put_off_) / (now - last_);
  last_ = now;
  put_off_ = put_off;
  if (is_first) {
    changed_ = now;
  } else if (is_crowded_) {
    if (now - changed_ < wait_) return true;
    is_crowded_ = false;
    changed_ = now;
  } else if (share > kCrowded) {
    is_crowded_ = true;
    changed_ = now;
    wait_ = std::min(2.0 * wait_, kLongestWait);
  } else if (now - changed_ > wait_) {
    wait_ = kFirstWait;  // free for as long as it was not
  }
  return is_crowded_;
}

namespace {

bool is_loaded() {
  double average = 0.0;  // of the last minute
  return getloadavg(&average, 1) == 1 && average > 0.5 * omp_get_num_procs();
}

// Linux counts for each thread how long it could run and did not: the second number of its schedstat. Not of other
// threads of the process: those that take answers wait for the team as often as it goes on. Where a kernel does not
// count, each time that a thread was put off is taken for a millisecond.
double seconds_put_off(const std::vector<int>& threads) {
  int64_t nanoseconds = 0;
  bool is_told = false;
  for (const int thread : threads) {
    std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/schedstat");
    int64_t ran = 0, waited = 0;
    if (!(file >> ran >> waited)) continue;
    is_told = true;
    nanoseconds += waited;
  }
  if (is_told) return 1e-9 * static_cast<double>(nanoseconds);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return 1e-3 * static_cast<double>(usage.ru_nivcsw);
}

// OpenMP keeps a thread's team from one region to the next.
std::vector<int> threads_of_team() {
  std::vector<int> threads(static_cast<size_t>(at::get_num_threads()));
#pragma omp parallel num_threads(at::get_num_threads())
  threads[static_cast<size_t>(omp_get_thread_num())] = static_cast<int>(syscall(SYS_gettid));
  return threads;
}

// libgomp ends the process where it finds no room for the stack of a thread.
bool has_room_for(int threads) {
  pthread_attr_t usual;
  size_t stack = 0;
  if (::pthread_getattr_default_np(&usual) != 0) return false;
  ::pthread_attr_getstacksize(&usual, &stack);
  ::pthread_attr_destroy(&usual);
  const size_t bytes = static_cast<size_t>(threads + 1) * 2 * stack;  // as much again for what else they take
  void* room = ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return room != MAP_FAILED && ::munmap(room, bytes) == 0;
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

// Believes the system's load average at first: on a crowded machine a short command would be over before the first try.
SpinGuard::SpinGuard() : crowding_(is_loaded()), began_(std::chrono::steady_clock::now()) {
  look();
}
SpinGuard::~SpinGuard() = default;

void SpinGuard::look() noexcept try {
  const std::chrono::duration<double> now = std::chrono::steady_clock::now() - began_;
  if (now.count() < next_) return;
  next_ = now.count() + 0.1;
  if (std::ssize(thread_) != at::get_num_threads()) thread_ = threads_of_team();
  const bool is_crowded = crowding_.update(now.count(), seconds_put_off(thread_)) && at::get_num_threads() > 1;
  if (is_crowded == (team_ != nullptr)) return;
  // Both teams together: one more than there are processors.
  const int threads = std::max(2, omp_get_num_procs() - at::get_num_threads() + 2);
  if (!is_crowded)
    team_.reset();
  else if (has_room_for(threads))
    team_ = std::make_unique<IdleTeam>(threads);
} catch (const std::exception&) {  // no memory, no thread: the next look tries again
}

}  // namespace espalier
