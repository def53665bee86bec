// SPDX-License-Identifier: Apache-2.0
// Conversations, and requests that come and go.
#include <pybind11/stl.h>

#include <cmath>
#include <shared_mutex>

#include "engine.h"
#include "espalier/scheduler.h"
#include "espalier/session.h"
#include "policy.h"
#include "request.h"
#include "result.h"

namespace espalier::python {

namespace {

using namespace pybind11::literals;

// ---- sessions ----

class LiveSession {
 public:
  LiveSession(std::shared_ptr<LiveEngine> engine, const SessionOptions& options)
      : engine_(std::move(engine)), session_(engine_->engine(), options) {}

  Result ask(std::vector<Part> turn, const Callbacks& callbacks) {
    const std::unique_lock one(mutex_, std::try_to_lock);
    if (!one) throw Error("session: a turn of it is running");
    return session_.ask(std::move(turn), callbacks);
  }
  Chat chat() {
    const std::unique_lock one(mutex_, std::try_to_lock);
    if (!one) throw Error("session: a turn of it is running");
    return session_.chat();
  }
  LiveEngine& engine() { return *engine_; }

 private:
  std::shared_ptr<LiveEngine> engine_;
  std::mutex mutex_;
  Session session_;  // first to go
};

std::shared_ptr<LiveSession> make_session(std::shared_ptr<LiveEngine> engine, py::handle policy, std::string system,
                                          bool is_sticky, const py::dict& generation) {
  SessionOptions options;
  if (py::isinstance<py::str>(policy))
    options.policy = policy.cast<std::string>();
  else
    options.custom = policy_of(policy);
  options.generation = generation_of(generation);
  options.system = std::move(system);
  options.sticky = is_sticky;
  return std::make_shared<LiveSession>(std::move(engine), options);
}

py::object ask(LiveSession& self, const Chat& turn, const py::dict& functions) {
  std::optional<Result> result;
  call_engine(self.engine(), callbacks_of(functions),
              [&](const Callbacks& callbacks) { result = self.ask(turn.messages.at(0).content, callbacks); });
  return to_python(*result);
}

// ---- schedulers ----

// Rings when a piece of an answer or its end has come.
class Bell {
 public:
  void ring() {
    std::vector<Held> listeners;
    {
      const std::scoped_lock lock(mutex_);
      listeners = std::exchange(listeners_, {});
      ++rings_;
    }
    rung_.notify_all();
    for (const Held& listener : listeners) try {
        in_python([&] { (*listener)(); });
      } catch (const Raised&) {
        // An event loop that has closed: nobody waits there any more.
      }
  }
  int64_t rings() const {
    const std::scoped_lock lock(mutex_);
    return rings_;
  }
  // `listener` is called once, on the thread that rings next; False, and never called, where it rang since `seen`.
  bool listen(int64_t seen, Held listener) {
    const std::scoped_lock lock(mutex_);
    if (rings_ != seen) return false;
    listeners_.push_back(std::move(listener));
    return true;
  }
  // Until `is_there` or the time is over; what it returned last.
  template <typename IsThere>
  bool wait(std::chrono::milliseconds time, const IsThere& is_there) {
    const auto end = std::chrono::steady_clock::now() + time;
    std::unique_lock lock(mutex_);
    for (;;) {
      const int64_t seen = rings_;
      lock.unlock();
      if (is_there()) return true;
      lock.lock();
      if (!rung_.wait_until(lock, end, [&] { return rings_ != seen; })) return false;
    }
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable rung_;
  int64_t rings_ = 0;
  std::vector<Held> listeners_;
};

// One submitted request.
class LiveTicket {
 public:
  LiveTicket(Ticket ticket, std::shared_ptr<Bell> bell) : ticket_(std::move(ticket)), bell_(std::move(bell)) {}

  bool is_done() const { return ticket_.is_done(); }
  void cancel() { ticket_.cancel(); }
  int64_t rings() const { return bell_->rings(); }
  bool listen(int64_t seen, py::object listener) { return bell_->listen(seen, hold(std::move(listener))); }
  // None when there is no more. TimeoutError after `seconds`, if there are any.
  py::object next(std::optional<double> seconds) {
    std::string piece;
    Ticket::Next next = Ticket::Next::kTimeout;
    wait(seconds, [&](std::chrono::milliseconds) {
      next = ticket_.next(piece, std::chrono::milliseconds(0));
      return next != Ticket::Next::kTimeout;
    });
    return next == Ticket::Next::kEnd ? py::object(py::none()) : py::object(text_of(piece));
  }
  py::object result(std::optional<double> seconds) {
    wait(seconds, [&](std::chrono::milliseconds) { return ticket_.is_done(); });
    return to_python(ticket_.result());
  }

 private:
  template <typename IsThere>
  void wait(std::optional<double> seconds, const IsThere& is_there) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    bool is_late = false;
    wait_interruptibly([&](std::chrono::milliseconds time) {
      if (bell_->wait(seconds ? std::min(time, left(*seconds, begin)) : time, [&] { return is_there(time); }))
        return true;
      return is_late = seconds && left(*seconds, begin).count() <= 0;
    });
    if (!is_late) return;
    PyErr_SetString(PyExc_TimeoutError, "ticket: nothing came in time");
    throw py::error_already_set();
  }
  static std::chrono::milliseconds left(double seconds, std::chrono::steady_clock::time_point begin) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
    return std::chrono::milliseconds(static_cast<int64_t>(std::ceil(std::max(0.0, seconds - passed.count()) * 1000)));
  }

  Ticket ticket_;
  std::shared_ptr<Bell> bell_;
};

class LiveScheduler {
 public:
  LiveScheduler(std::shared_ptr<LiveEngine> engine, const SchedulerOptions& options)
      : engine_(std::move(engine)), scheduler_(std::make_unique<Scheduler>(engine_->engine(), options)) {}

  // Cancels what runs and waits for it. Without the lock.
  void close() {
    const std::unique_lock lock(mutex_);
    scheduler_.reset();
  }
  template <typename Use>
  auto use(const Use& use) {
    const std::shared_lock lock(mutex_);
    if (!scheduler_) throw Error("scheduler: it is closed");
    return use(*scheduler_);
  }
  LiveEngine& engine() { return *engine_; }

 private:
  std::shared_ptr<LiveEngine> engine_;
  std::shared_mutex mutex_;               // of scheduler_ as such: shared by those who use it
  std::unique_ptr<Scheduler> scheduler_;  // first to go
};

py::list submit(LiveScheduler& self, const Request& request, size_t samples, const py::dict& functions) {
  std::vector<std::shared_ptr<Bell>> bells;
  for (size_t i = 0; i < samples; ++i) bells.push_back(std::make_shared<Bell>());
  Callbacks callbacks = callbacks_of(functions);
  callbacks.on_text = [bells, asked = callbacks.on_text](size_t answer, std::string_view piece) {
    bells[answer]->ring();
    return asked ? asked(answer, piece) : Continue::kGo;
  };
  callbacks.on_end = [bells](size_t answer) { bells[answer]->ring(); };
  std::vector<Ticket> tickets;
  call_engine(self.engine(), {}, [&](const Callbacks&) {
    tickets = self.use([&](Scheduler& scheduler) { return scheduler.submit(request, samples, callbacks); });
  });
  py::list all;
  for (size_t i = 0; i < tickets.size(); ++i) all.append(std::make_shared<LiveTicket>(std::move(tickets[i]), bells[i]));
  return all;
}

py::object load_of(LiveScheduler& self) {
  SchedulerLoad l;
  {
    const Unlocked unlocked;
    l = self.use([](const Scheduler& scheduler) { return scheduler.load(); });
  }
  return py::module_::import("espalier.results")
      .attr("SchedulerLoad")(
          "waiting"_a = l.waiting, "running"_a = l.running, "kv_bytes_promised"_a = l.kv_bytes_promised,
          "kv_bytes_in_use"_a = l.kv_bytes_in_use, "prefix_hits"_a = l.prefix_hits, "prefix_misses"_a = l.prefix_misses,
          "reused_tokens"_a = l.reused_tokens, "prefix_bytes"_a = l.prefix_bytes, "image_hits"_a = l.image_hits,
          "image_misses"_a = l.image_misses, "image_bytes"_a = l.image_bytes);
}

}  // namespace

void add_sessions(py::module_& module) {
  py::class_<LiveSession, std::shared_ptr<LiveSession>>(module, "Session", py::release_gil_before_calling_cpp_dtor())
      .def(py::init(&make_session), "engine"_a, "policy"_a, "system"_a, "sticky"_a, "generation"_a)
      .def("ask", &ask, "turn"_a, "callbacks"_a, py::call_guard<Inside>())
      .def("chat", &LiveSession::chat);
  py::class_<LiveTicket, std::shared_ptr<LiveTicket>>(module, "Ticket")
      .def_property_readonly("is_done", &LiveTicket::is_done)
      .def("cancel", &LiveTicket::cancel)
      .def_property_readonly("rings", &LiveTicket::rings)
      .def("listen", &LiveTicket::listen, "seen"_a, "listener"_a)
      .def("next", &LiveTicket::next, "timeout"_a, py::call_guard<Inside>())
      .def("result", &LiveTicket::result, "timeout"_a, py::call_guard<Inside>());
  py::class_<LiveScheduler, std::shared_ptr<LiveScheduler>>(module, "Scheduler",
                                                            py::release_gil_before_calling_cpp_dtor())
      .def(py::init([](std::shared_ptr<LiveEngine> engine, int64_t kv_bytes, int64_t prefix_cache_bytes,
                       int64_t max_waiting) {
             const LiveEngine::Entry inside(*engine);
             return std::make_shared<LiveScheduler>(engine, SchedulerOptions{.kv_bytes = kv_bytes,
                                                                             .prefix_cache_bytes = prefix_cache_bytes,
                                                                             .max_waiting = max_waiting});
           }),
           "engine"_a, "kv_bytes"_a, "prefix_cache_bytes"_a, "max_waiting"_a)
      .def("submit", &submit, "request"_a, "samples"_a, "callbacks"_a, py::call_guard<Inside>())
      .def("load", &load_of, py::call_guard<Inside>())
      .def("close", &LiveScheduler::close, py::call_guard<Unlocked>());
}

}  // namespace espalier::python
