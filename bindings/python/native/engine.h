// SPDX-License-Identifier: Apache-2.0
// An engine that Python holds, and the calls that are inside it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "crossing.h"
#include "espalier/engine.h"

namespace espalier::python {

// Whatever is made of an engine (sessions, schedulers, handles) holds it; it goes with the last of them. Thread-safe.
class LiveEngine {
 public:
  explicit LiveEngine(Engine engine) : engine_(std::move(engine)) {}

  const Engine& engine() const { return engine_; }
  bool is_closed() const { return is_closed_; }
  // Cancels the calls that are inside, waits for them, and lets no other in. Before the interpreter ends: a thread of
  // ours that then asked for its lock would never come back. Without the lock.
  void close();

  // From here to its end a call is inside. Throws Error for a closed engine.
  class Entry {
   public:
    explicit Entry(LiveEngine& engine);
    ~Entry();
    Entry(const Entry&) = delete;
    Entry& operator=(const Entry&) = delete;

   private:
    LiveEngine& engine_;
  };

 private:
  Engine engine_;
  std::atomic<bool> is_closed_ = false;
  std::mutex mutex_;
  std::condition_variable left_;
  int inside_ = 0;
};

// Runs `work` inside the engine with callbacks that know when to stop: with the lock, which it gives up; interruptible.
void call_engine(LiveEngine& engine, Callbacks callbacks, const std::function<void(const Callbacks&)>& work);

void add_engine(py::module_& module);
void add_sessions(py::module_& module);
void add_tools(py::module_& module);

}  // namespace espalier::python
