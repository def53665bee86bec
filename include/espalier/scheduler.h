// SPDX-License-Identifier: Apache-2.0
// Requests that come and go: each is submitted from any thread, joins those that run at the next layer, and leaves when
// its answer ends. What it answers is what it would answer alone. No libtorch type appears here.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/generation.h"

namespace espalier {

// Bounds of what a scheduler takes on, and who computes.
struct SchedulerOptions {
  // Bytes that keys and values of all running requests may take. A request that does not fit now waits its turn; one
  // that never fits is refused when it is submitted. 0: no limit.
  int64_t kv_bytes = 0;
  int64_t prefix_cache_bytes = 0;  // as EngineOptions::prefix_cache_bytes, of this scheduler
  // Requests that may wait for their turn; one more is refused with QueueFull. 0: no limit.
  int64_t max_waiting = 0;
  // True: the engine's own thread computes, in turn with whatever else it has to do. False: nothing happens but in
  // step(), for programs that have a loop of their own.
  bool own_thread = true;
};

inline constexpr size_t kMaxSamples = 1024;  // answers to one prompt

// As many requests wait as may; a later try may succeed.
class QueueFull : public Error {
 public:
  using Error::Error;
};

// One submitted request. Thread-safe; copies are the same request. One that nobody holds any more runs to its end.
class Ticket {
 public:
  enum class Next : uint8_t { kText, kEnd, kTimeout };

  // Waits for the next piece of the answer's text, up to `timeout`, and puts it into `piece`. kEnd: there is no more,
  // and result() does not wait.
  Next next(std::string& piece, std::chrono::milliseconds timeout);
  // Takes effect within a layer. What text there is stays; the result's finish_reason is kCancelled.
  void cancel();
  bool is_done() const;
  // Waits for the end. Throws what ended the request in place of an answer: an Error of its policy, what a callback of
  // its own threw, OutOfMemory, c10::Error. May be asked again.
  const Result& result() const;

 private:
  friend class Scheduler;
  struct State;
  explicit Ticket(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

// What a scheduler has to do and has kept, for metrics.
struct SchedulerLoad {
  int64_t waiting = 0;                                            // submitted, not begun
  int64_t running = 0;                                            // between encode and the end of their answers
  int64_t kv_bytes_promised = 0;                                  // to those that run, answers included
  int64_t kv_bytes_in_use = 0;                                    // the prefix cache's among them
  int64_t prefix_hits = 0, prefix_misses = 0, reused_tokens = 0;  // since the start
  int64_t prefix_bytes = 0;
  int64_t image_hits = 0, image_misses = 0;  // of EngineOptions::image_cache_bytes, since the engine's start
  int64_t image_bytes = 0;
};

// Everything is thread-safe but step(), which one thread at a time may call. It must not outlive its engine. Dropped,
// it cancels what runs.
class Scheduler {
 public:
  explicit Scheduler(const Engine& engine, const SchedulerOptions& options = {});
  Scheduler(Scheduler&&) noexcept;
  Scheduler& operator=(Scheduler&&) noexcept;
  ~Scheduler();

  // Packs the prompt on the calling thread and refuses there what cannot be served: throws Error with the reason. The
  // callbacks run on the thread that computes, with request 0; they must not wait for the scheduler.
  Ticket submit(const Request& request, const Callbacks& callbacks = {});
  // Several answers to one prompt, 1 to kMaxSamples, each with a ticket of its own and the seeds seed, seed + 1, …; the
  // prompt is computed once, and its rows are shared. Callbacks get the answer's number as their request.
  std::vector<Ticket> submit(const Request& request, size_t samples, const Callbacks& callbacks = {});
  // With own_thread = false: computes a layer for those that came and a token for each that runs. False when there was
  // nothing to do.
  bool step();
  SchedulerLoad load() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace espalier
