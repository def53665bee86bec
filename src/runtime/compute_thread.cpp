// SPDX-License-Identifier: Apache-2.0
#include "runtime/compute_thread.h"

#include <algorithm>

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
  Task task{work};
  std::unique_lock lock(mutex_);
  *end_ = &task;
  end_ = &task.next;
  changed_.notify_all();
  done_.wait(lock, [&] { return task.is_done; });
  if (task.error) std::rethrow_exception(task.error);
}

void ComputeThread::run_tasks(Task* first) {
  while (first) {
    Task& task = *first;
    first = task.next;  // as long as it is there
    try {
      task.work();
    } catch (...) {
      task.error = std::current_exception();
    }
    const std::scoped_lock lock(mutex_);
    task.is_done = true;
    done_.notify_all();
  }
}

int64_t ComputeThread::add(std::function<bool()> step) {
  auto shared = std::make_shared<const Step>(std::move(step));
  const std::scoped_lock lock(mutex_);
  steps_.emplace_back(next_, std::move(shared));
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

std::shared_ptr<const ComputeThread::Step> ComputeThread::step_at(size_t place) {
  const std::scoped_lock lock(mutex_);
  return place < steps_.size() ? steps_[place].second : nullptr;
}

// Asks for no memory: an exception in here would end the process.
void ComputeThread::loop() {
  SpinGuard spinning;
  for (;;) {
    Task* tasks = nullptr;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return is_ending_ || is_awake_ || first_; });
      if (is_ending_) return;
      tasks = std::exchange(first_, nullptr);
      end_ = &first_;
      is_awake_ = false;
    }
    run_tasks(tasks);
    bool is_busy = false;
    size_t place = 0;
    while (const auto step = step_at(place++)) is_busy |= (*step)();
    if (!is_busy) continue;
    spinning.look();
    wake();
  }
}

}  // namespace espalier
