// SPDX-License-Identifier: Apache-2.0
// A schedule that requests reach from any thread, driven by a thread of its own or by whoever calls step().
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/schedule.h"

namespace espalier {

class ScheduleThread {
 public:
  using Runs = std::vector<std::unique_ptr<RequestRun>>;

  // Options' on_done is called on the thread that computes. own_thread: the thread starts with the first request.
  ScheduleThread(const LoadedModel& model, const ScheduleOptions& options, bool own_thread);
  // Cancels what is left and waits for it.
  ~ScheduleThread();

  // All of them at once: they are seen together. Throws Error, and admits none, when one can never fit.
  void admit(Runs runs);
  // Without a thread of its own. False when there was nothing to do.
  bool step();
  bool caches_prefixes() const { return caches_prefixes_; }
  bool is_own_thread() const { return std::this_thread::get_id() == thread_.get_id(); }
  Schedule::Load load() const;
  int64_t kv_bytes_in_use() const { return schedule_.arena().bytes_in_use(); }

 private:
  void take_arrived();
  void work();

  mutable std::mutex mutex_;
  std::condition_variable has_work_;
  Runs arrived_;
  int num_threads_ = 0;  // of the last who asked
  bool is_ending_ = false;
  Schedule::Load load_;  // as of the last step
  Schedule schedule_;    // of the thread that computes
  bool has_own_thread_, caches_prefixes_;
  std::thread thread_;
};

}  // namespace espalier
