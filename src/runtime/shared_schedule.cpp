// SPDX-License-Identifier: Apache-2.0
#include "runtime/shared_schedule.h"

#include <ATen/Parallel.h>

#include <exception>
#include <iterator>

namespace espalier {

SharedSchedule::SharedSchedule(const LoadedModel& model, const ScheduleOptions& options, ComputeThread* compute)
    : compute_(compute), schedule_(model, options), caches_prefixes_(options.prefix_cache_bytes > 0) {
  if (compute_) added_ = compute_->add([this] { return step(); });
}

SharedSchedule::~SharedSchedule() {
  const auto end = [this] {
    if (compute_) compute_->remove(added_);
    take_arrived();
    try {
      schedule_.cancel_all();
    } catch (...) {
      schedule_.give_up(std::current_exception());
    }
  };
  if (compute_)
    compute_->run(end);
  else
    end();
}

void SharedSchedule::admit(Runs runs) {
  for (const auto& run : runs) schedule_.check_fits(*run);
  num_threads_ = at::get_num_threads();
  {
    const std::scoped_lock lock(mutex_);
    arrived_.reserve(arrived_.size() + runs.size());  // all or none
    std::ranges::move(runs, std::back_inserter(arrived_));
  }
  if (compute_) compute_->wake();
}

bool SharedSchedule::step() {
  take_arrived();
  if (schedule_.is_idle()) return false;
  try {
    // libtorch counts threads for each thread apart: those who asked decide.
    if (const int wanted = num_threads_; wanted != at::get_num_threads()) at::set_num_threads(wanted);
    schedule_.step();
  } catch (...) {
    schedule_.give_up(std::current_exception());
  }
  const std::scoped_lock lock(mutex_);
  prefixes_ = schedule_.load().prefixes;
  return true;
}

Schedule::Load SharedSchedule::load() const {
  const std::scoped_lock lock(mutex_);
  int64_t waiting = schedule_.num_waiting();
  for (const auto& run : arrived_) waiting += static_cast<int64_t>(run->num_answers());
  return {.waiting = waiting,
          .running = schedule_.num_running(),
          .kv_bytes_promised = schedule_.kv_bytes_promised(),
          .prefixes = prefixes_};
}

void SharedSchedule::take_arrived() {
  Runs arrived;
  {
    const std::scoped_lock lock(mutex_);
    arrived = std::exchange(arrived_, {});
  }
  for (auto& run : arrived) schedule_.admit(std::move(run));
}

}  // namespace espalier
