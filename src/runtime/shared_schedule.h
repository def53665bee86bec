// SPDX-License-Identifier: Apache-2.0
// A schedule that requests reach from any thread, driven by the engine's computing thread or by whoever calls step().
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/compute_thread.h"
#include "runtime/schedule.h"

namespace espalier {

class SharedSchedule {
 public:
  using Runs = std::vector<std::unique_ptr<RequestRun>>;

  // Options' on_done is called on the thread that computes. Without `compute` nothing happens but in step().
  SharedSchedule(const LoadedModel& model, const ScheduleOptions& options, ComputeThread* compute);
  // Cancels what is left and waits for it.
  ~SharedSchedule();

  // All of them at once: they are seen together. Throws Error, and admits none, when one can never fit.
  void admit(Runs runs);
  // On the thread that computes. False when there was nothing to do. Throws nothing: what goes wrong ends requests.
  bool step();
  bool caches_prefixes() const { return caches_prefixes_; }
  Schedule::Load load() const;
  int64_t kv_bytes_in_use() const { return schedule_.arena().bytes_in_use(); }

 private:
  void take_arrived();

  ComputeThread* compute_;
  int64_t added_ = 0;  // to compute_
  mutable std::mutex mutex_;
  Runs arrived_;
  std::atomic<int> num_threads_ = 0;  // of the last who asked
  PrefixCache::Counts prefixes_;      // as of the last step
  Schedule schedule_;                 // of the thread that computes
  bool caches_prefixes_;
};

}  // namespace espalier
