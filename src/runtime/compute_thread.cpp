// SPDX-License-Identifier: Apache-2.0
#include "runtime/compute_thread.h"

#include <algorithm>
#include <new>

#include "runtime/crowding.h"

namespace espalier {

ComputeThread::ComputeThread() : thread_([this] { loop(); }) {}

ComputeThread::~ComputeThread() {
  {
    const std::scoped_lock lock(mutex_);
    is_ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ComputeThread::run(const std::function<void()>& work) {
  if (is_this_thread()) return work();
  std::packaged_task<void()> task(work);
  std::future<void> done = task.get_future();
  {
    const std::scoped_lock lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
  done.get();
}

int64_t ComputeThread::add(std::function<bool()> step) {
  const std::scoped_lock lock(mutex_);
  steps_.emplace_back(next_, std::move(step));
  return next_++;
}

void ComputeThread::remove(int64_t added) {
  const std::scoped_lock lock(mutex_);
  std::erase_if(steps_, [&](const auto& step) { return step.first == added; });
}

void ComputeThread::wake() {
  {
    const std::scoped_lock lock(mutex_);
    is_awake_ = true;
  }
  changed_.notify_all();
}

void ComputeThread::loop() {
  SpinGuard spinning;
  for (;;) {
    std::deque<std::packaged_task<void()>> tasks;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return is_ending_ || is_awake_ || !tasks_.empty(); });
      if (is_ending_) return;
      tasks = std::exchange(tasks_, {});
      is_awake_ = false;
    }
    for (auto& task : tasks) task();
    std::vector<std::pair<int64_t, std::function<bool()>>> steps;
    {
      const std::scoped_lock lock(mutex_);
      steps = steps_;
    }
    bool is_busy = false;
    for (const auto& [id, step] : steps) try {
        is_busy |= step();
      } catch (const std::bad_alloc&) {  // between requests, as they catch their own: tried again
        is_busy = true;
      }
    if (!is_busy) continue;
    spinning.look();
    wake();
  }
}

}  // namespace espalier
