// SPDX-License-Identifier: Apache-2.0
// Schedulers and tickets of espalier.h.
#include "espalier/scheduler.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <vector>

#include "c_api/call.h"
#include "c_api/handles.h"
#include "c_api/request.h"
#include "espalier/json.h"

using namespace espalier;
using namespace espalier::c_api;

struct espalier_scheduler {
  std::shared_ptr<const Engine> engine;  // first, so that it is destroyed last
  Scheduler scheduler;
};

struct espalier_ticket {
  Ticket ticket;
};

namespace {

SchedulerOptions scheduler_options_of(const espalier_scheduler_options* given) {
  const espalier_scheduler_options from = read_struct_or_defaults(given, "scheduler_options");
  return {.kv_bytes = from.kv_bytes,
          .prefix_cache_bytes = from.prefix_cache_bytes,
          .max_waiting = from.max_waiting,
          .own_thread = from.no_own_thread == 0};
}

}  // namespace

extern "C" {

espalier_code espalier_scheduler_new(const espalier_engine* engine, const espalier_scheduler_options* options,
                                     espalier_scheduler** scheduler, espalier_error** error) {
  return make_handle(scheduler, "scheduler", error, [&] {
    const std::shared_ptr<const Engine>& of = needed(engine, "engine").engine;
    return espalier_scheduler{of, Scheduler(*of, scheduler_options_of(options))};
  });
}

espalier_code espalier_scheduler_submit(espalier_scheduler* scheduler, const espalier_request* request,
                                        const espalier_callbacks* callbacks, espalier_ticket** ticket,
                                        espalier_error** error) {
  return make_handle(ticket, "ticket", error, [&] {
    return espalier_ticket{needed(scheduler, "scheduler")
                               .scheduler.submit(request_of(needed(request, "request")), callbacks_of(callbacks))};
  });
}

espalier_code espalier_scheduler_submit_samples(espalier_scheduler* scheduler, const espalier_request* request,
                                                size_t samples, const espalier_callbacks* callbacks,
                                                espalier_ticket** tickets, espalier_error** error) {
  if (tickets) std::fill_n(tickets, std::min(samples, kMaxSamples), nullptr);
  return call(error, [&] {
    needed(tickets, "tickets");
    const Callbacks told = callbacks_of(callbacks);
    if (told.on_text || told.on_token)
      throw Error("callbacks: expected no on_text and no on_token, which do not say whose text it is");
    std::vector<Ticket> submitted =
        needed(scheduler, "scheduler").scheduler.submit(request_of(needed(request, "request")), samples, told);
    std::vector<std::unique_ptr<espalier_ticket>> made;
    for (Ticket& ticket : submitted)
      made.push_back(std::make_unique<espalier_ticket>(espalier_ticket{std::move(ticket)}));
    for (size_t i = 0; i < samples; ++i) tickets[i] = made[i].release();
  });
}

espalier_code espalier_scheduler_step(espalier_scheduler* scheduler, int32_t* worked, espalier_error** error) {
  return call(error, [&] {
    const bool did = needed(scheduler, "scheduler").scheduler.step();
    if (worked) *worked = did;
  });
}

espalier_code espalier_scheduler_load_json(const espalier_scheduler* scheduler, char** json, espalier_error** error) {
  return make_text(json, "json", error, [&] { return json_of(needed(scheduler, "scheduler").scheduler.load()); });
}

void espalier_scheduler_free(espalier_scheduler* scheduler) {
  delete scheduler;
}

espalier_code espalier_ticket_next(espalier_ticket* ticket, int64_t timeout_ms, espalier_next* next, char** piece,
                                   size_t* length, espalier_error** error) {
  if (piece) *piece = nullptr;
  if (length) *length = 0;
  return call(error, [&] {
    needed(piece, "piece");
    needed(next, "next") = ESPALIER_NEXT_END;
    if (timeout_ms < 0) throw Error("timeout_ms: expected 0 or more, got " + std::to_string(timeout_ms));
    // Beyond it the clock's own arithmetic would overflow.
    constexpr std::chrono::milliseconds kLongest = std::chrono::hours(24 * 365);
    std::string text;
    switch (needed(ticket, "ticket").ticket.next(text, std::min(std::chrono::milliseconds(timeout_ms), kLongest))) {
      case Ticket::Next::kText:
        *piece = new_text(text);
        if (length) *length = text.size();
        *next = ESPALIER_NEXT_TEXT;
        break;
      case Ticket::Next::kTimeout:
        *next = ESPALIER_NEXT_TIMEOUT;
        break;
      case Ticket::Next::kEnd:
        break;
    }
  });
}

void espalier_ticket_cancel(espalier_ticket* ticket) {
  if (ticket) ticket->ticket.cancel();
}

int32_t espalier_ticket_is_done(const espalier_ticket* ticket) {
  return ticket && ticket->ticket.is_done();
}

espalier_code espalier_ticket_result(const espalier_ticket* ticket, espalier_result** result, espalier_error** error) {
  return make_handle(result, "result", error, [&] {
    // The result is the request's own; it lives as long as any copy of its ticket.
    const auto copy = std::make_shared<const Ticket>(needed(ticket, "ticket").ticket);
    return espalier_result{{copy, &copy->result()}};
  });
}

void espalier_ticket_free(espalier_ticket* ticket) {
  delete ticket;
}

}  // extern "C"
