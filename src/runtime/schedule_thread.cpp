// SPDX-License-Identifier: Apache-2.0
#include "runtime/schedule_thread.h"

#include <ATen/Parallel.h>

#include <iterator>

namespace espalier {

ScheduleThread::ScheduleThread(const LoadedModel& model, const ScheduleOptions& options, bool own_thread)
    : schedule_(model, options), has_own_thread_(own_thread), caches_prefixes_(options.prefix_cache_bytes > 0) {}

ScheduleThread::~ScheduleThread() {
  {
    const std::scoped_lock lock(mutex_);
    is_ending_ = true;
  }
  has_work_.notify_all();
  if (thread_.joinable()) thread_.join();
  take_arrived();
  schedule_.cancel_all();
}

void ScheduleThread::admit(Runs runs) {
  for (const auto& run : runs) schedule_.check_fits(*run);
  const std::scoped_lock lock(mutex_);
  std::ranges::move(runs, std::back_inserter(arrived_));
  num_threads_ = at::get_num_threads();
  if (has_own_thread_ && !thread_.joinable()) thread_ = std::thread([this] { work(); });
  has_work_.notify_all();
}

bool ScheduleThread::step() {
  take_arrived();
  const bool had_work = !schedule_.is_idle();
  schedule_.step();
  const std::scoped_lock lock(mutex_);
  load_ = schedule_.load();
  return had_work;
}

Schedule::Load ScheduleThread::load() const {
  const std::scoped_lock lock(mutex_);
  Schedule::Load load = load_;
  load.waiting += std::ssize(arrived_);
  return load;
}

void ScheduleThread::take_arrived() {
  Runs arrived;
  {
    const std::scoped_lock lock(mutex_);
    arrived = std::exchange(arrived_, {});
  }
  for (auto& run : arrived) schedule_.admit(std::move(run));
}

void ScheduleThread::work() {
  for (;;) {
    int num_threads = 0;
    {
      std::unique_lock lock(mutex_);
      has_work_.wait(lock, [this] { return is_ending_ || !arrived_.empty() || !schedule_.is_idle(); });
      if (is_ending_) return;
      num_threads = num_threads_;
    }
    // libtorch counts threads for each thread apart: those who asked decide.
    if (num_threads != at::get_num_threads()) at::set_num_threads(num_threads);
    step();
  }
}

}  // namespace espalier
