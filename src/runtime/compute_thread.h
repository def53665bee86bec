// SPDX-License-Identifier: Apache-2.0
// The one thread of an engine on which everything is computed: loading, looking at pictures, the steps of all its
// schedules. OpenMP keeps a team of workers for each thread that computes, and teams that wait for work take the cores
// from each other.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace espalier {

class ComputeThread {
 public:
  ComputeThread();
  // Whoever added steps has removed them.
  ~ComputeThread();

  // Calls `work` on the thread and waits for it; from the thread itself, at once. Throws what it throws, and nothing
  // else: it asks for no memory.
  void run(const std::function<void()>& work);

  // `step` is called as long as it returns true, in turn with others, and again after wake(). It does not throw.
  int64_t add(std::function<bool()> step);
  void remove(int64_t added);  // from the thread itself, by run()
  void wake();
  bool is_this_thread() const { return std::this_thread::get_id() == thread_.get_id(); }

 private:
  using Step = std::function<bool()>;
  struct Task {  // of a caller that waits, on whose stack it is
    const std::function<void()>& work;
    Task* next = nullptr;
    std::exception_ptr error = nullptr;
    bool is_done = false;
  };

  void loop();
  void run_tasks(Task* first);
  std::shared_ptr<const Step> step_at(size_t place);  // null after the last

  std::mutex mutex_;
  std::condition_variable changed_, done_;
  Task* first_ = nullptr;  // a list in the order of their coming
  Task** end_ = &first_;
  std::vector<std::pair<int64_t, std::shared_ptr<const Step>>> steps_;
  int64_t next_ = 0;
  bool is_awake_ = false, is_ending_ = false;
  std::thread thread_;
};

}  // namespace espalier
