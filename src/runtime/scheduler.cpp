// SPDX-License-Identifier: Apache-2.0
#include "espalier/scheduler.h"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <unordered_map>

#include "espalier/error.h"
#include "runtime/engine_impl.h"
#include "runtime/out_of_memory.h"
#include "runtime/shared_schedule.h"

namespace espalier {

struct Ticket::State {
  std::shared_ptr<Call> call;
  mutable std::mutex mutex;
  mutable std::condition_variable changed;
  std::deque<std::string> pieces;
  bool is_done = false;
  Result result;
  std::exception_ptr error;

  Continue add(std::string_view piece) {
    const std::scoped_lock lock(mutex);
    pieces.emplace_back(piece);
    changed.notify_all();
    return Continue::kGo;
  }
  void end(RequestRun& run) {
    {
      const std::scoped_lock lock(mutex);
      if (run.result) result = std::move(*run.result);
      error = run.error;
      is_done = true;
      changed.notify_all();
    }
    if (run.call->callbacks.on_end) run.call->callbacks.on_end(run.index);
  }
};

Ticket::Next Ticket::next(std::string& piece, std::chrono::milliseconds timeout) {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, timeout, [this] { return state_->is_done || !state_->pieces.empty(); });
  if (!state_->pieces.empty()) {
    piece = std::move(state_->pieces.front());
    state_->pieces.pop_front();
    return Next::kText;
  }
  return state_->is_done ? Next::kEnd : Next::kTimeout;
}

void Ticket::cancel() {
  state_->call->cancel();
}

bool Ticket::is_done() const {
  const std::scoped_lock lock(state_->mutex);
  return state_->is_done;
}

const Result& Ticket::result() const {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return state_->is_done; });
  if (state_->error) rethrow_in_our_words(state_->error);
  return state_->result;
}

struct Scheduler::Impl {
  Impl(const LoadedModel& loaded, ImageCache* pictures, const SchedulerOptions& options, ComputeThread* compute)
      : model(loaded),
        images(pictures),
        max_waiting(options.max_waiting),
        schedule(loaded,
                 {.images = pictures,
                  .kv_bytes = options.kv_bytes,
                  .prefix_cache_bytes = options.prefix_cache_bytes,
                  .on_done = [this](std::unique_ptr<RequestRun> run) { end(*run); }},
                 compute) {}

  void end(RequestRun& run) {
    std::shared_ptr<Ticket::State> state;
    {
      const std::scoped_lock lock(mutex);
      const auto found = tickets.find(run.call.get());
      state = found->second;
      tickets.erase(found);
    }
    state->end(run);
  }

  const LoadedModel& model;
  const ImageCache* images;
  const int64_t max_waiting;
  std::mutex mutex;
  std::unordered_map<const Call*, std::shared_ptr<Ticket::State>> tickets;  // of those that have not ended
  SharedSchedule schedule;                                                  // first to go
};

Scheduler::Scheduler(const Engine& engine, const SchedulerOptions& options)
    : impl_(std::make_unique<Impl>(engine.impl().model, engine.impl().images.get(), options,
                                   options.own_thread ? engine.impl().compute.get() : nullptr)) {}
Scheduler::Scheduler(Scheduler&&) noexcept = default;
Scheduler& Scheduler::operator=(Scheduler&&) noexcept = default;
Scheduler::~Scheduler() = default;

Ticket Scheduler::submit(const Request& request, const Callbacks& callbacks) {
  return std::move(submit(request, 1, callbacks)[0]);
}

std::vector<Ticket> Scheduler::submit(const Request& request, size_t samples, const Callbacks& callbacks) try {
  if (samples == 0 || samples > kMaxSamples)
    throw Error("samples: expected 1 to " + std::to_string(kMaxSamples) + ", got " + std::to_string(samples));
  std::vector<std::shared_ptr<Ticket::State>> states;
  SharedSchedule::Runs runs;  // one; more where the answers to one prompt cannot share its rows
  for (size_t i = 0; i < samples; ++i) {
    auto state = std::make_shared<Ticket::State>();
    Callbacks watched = callbacks;
    // Not by the state's owner: the call holds its callbacks, and the state holds the call.
    watched.on_text = [weak = std::weak_ptr(state), on_text = callbacks.on_text](size_t n, std::string_view piece) {
      if (const auto there = weak.lock()) there->add(piece);
      return on_text ? on_text(n, piece) : Continue::kGo;
    };
    state->call = std::make_shared<Call>(std::move(watched));
    const RunExtras extras{.uses_prefixes = impl_->schedule.caches_prefixes()};
    in_our_words([&] {
      const uint64_t seed = request.options.seed + i;
      if (!runs.empty() && !runs[0]->sequence.walk.asks_again()) {
        runs[0]->samples.push_back(std::make_unique<RequestRun>(impl_->model, *runs[0], seed, i, state->call));
        return;
      }
      Request own = request;
      own.options.seed = seed;
      runs.push_back(std::make_unique<RequestRun>(impl_->model, own, i, state->call, extras));
    });
    states.push_back(std::move(state));
  }
  std::vector<Ticket> tickets;  // made before anything runs that they are for
  for (const auto& state : states) tickets.push_back(Ticket(state));
  const std::scoped_lock lock(impl_->mutex);
  if (impl_->max_waiting > 0 && impl_->schedule.load().waiting + static_cast<int64_t>(samples) > impl_->max_waiting)
    throw QueueFull("scheduler: " + std::to_string(impl_->max_waiting) + " requests wait already");
  try {
    for (const auto& state : states) impl_->tickets[state->call.get()] = state;
    impl_->schedule.admit(std::move(runs));
  } catch (...) {
    for (const auto& state : states) impl_->tickets.erase(state->call.get());
    throw;
  }
  return tickets;
} catch (const std::bad_alloc&) {
  throw OutOfMemory();
}

bool Scheduler::step() {
  return impl_->schedule.step();
}

SchedulerLoad Scheduler::load() const {
  const Schedule::Load load = impl_->schedule.load();
  const ImageCache::Counts images = impl_->images ? impl_->images->counts() : ImageCache::Counts();
  return {.waiting = load.waiting,
          .running = load.running,
          .kv_bytes_promised = load.kv_bytes_promised,
          .kv_bytes_in_use = impl_->schedule.kv_bytes_in_use(),
          .prefix_hits = load.prefixes.hits,
          .prefix_misses = load.prefixes.misses,
          .reused_tokens = load.prefixes.reused_tokens,
          .prefix_bytes = load.prefixes.bytes,
          .image_hits = images.hits,
          .image_misses = images.misses,
          .image_bytes = images.bytes};
}

}  // namespace espalier
