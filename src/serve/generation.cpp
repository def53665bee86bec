// SPDX-License-Identifier: Apache-2.0
#include "serve/generation.h"

#include <algorithm>
#include <utility>

#include "espalier/error.h"
#include "serve/api_error.h"
#include "serve/log_text.h"

namespace espalier::serve {

namespace {

double seconds(Generation::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

Generation::Generation(const GenerationParts& parts, Asked asked, std::shared_ptr<Exchange> exchange, std::string path,
                       Clock::time_point arrived)
    : parts_(parts),
      asked_(std::move(asked)),
      exchange_(std::move(exchange)),
      path_(std::move(path)),
      arrived_(arrived),
      form_(parts.engine.tokenizer(), asked_, parts.model_name),
      samples_(static_cast<size_t>(asked_.samples)) {
  parts_.metrics.add_begun();
}

Generation::~Generation() {
  parts_.metrics.add_ended();
}

Callbacks Generation::callbacks() {
  Callbacks callbacks;
  const auto self = shared_from_this();  // until the run is over, whose end lets the callbacks go
  callbacks.on_token = [self](size_t sample, int32_t, const TokenLogprobs* logprobs) {
    self->on_token(static_cast<int>(sample), logprobs);
  };
  callbacks.on_text = [self](size_t sample, std::string_view piece) {
    self->on_text(static_cast<int>(sample), piece);
    return Continue::kGo;
  };
  callbacks.on_end = [self](size_t) { self->on_end(); };
  return callbacks;
}

void Generation::start() {
  std::vector<Ticket> tickets;
  try {
    tickets = parts_.scheduler.submit(asked_.request, samples_.size(), callbacks());
  } catch (const QueueFull& full) {
    throw ApiError(429, "queue_full", full.what());
  } catch (const Error& error) {
    throw ApiError(400, "invalid_request", error.what());
  }
  exchange_->on_left([weak = weak_from_this()](Exchange::Left why) {
    if (const auto self = weak.lock()) self->leave(why);
  });
  bool is_over = false;
  {
    const std::scoped_lock lock(mutex_);
    tickets_ = std::move(tickets);
    is_submitted_ = true;
    if (left_)
      for (Ticket& ticket : tickets_) ticket.cancel();
    if (asked_.streams) {
      exchange_->begin(
          {.type = "text/event-stream",
           .body = {},
           .headers = {
               {"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}, {"X-Espalier-Prefix", asked_.prefix}}});
      for (int i = 0; i < asked_.samples; ++i) exchange_->write(form_.first_event(i));
      for (std::string& event : early_) exchange_->write(std::move(event));
      early_.clear();
    }
    is_over = num_ended_ == asked_.samples;
  }
  if (is_over) finish();
}

void Generation::on_token(int sample, const TokenLogprobs* logprobs) {
  const std::scoped_lock lock(mutex_);
  Sample& of = samples_[static_cast<size_t>(sample)];
  of.last = Clock::now();
  if (of.tokens++ == 0) of.first = of.last;
  if (logprobs && asked_.streams) of.untold.push_back(*logprobs);
}

void Generation::on_text(int sample, std::string_view piece) {
  if (!asked_.streams) return;
  const std::scoped_lock lock(mutex_);
  Sample& of = samples_[static_cast<size_t>(sample)];
  send(form_.piece_event(sample, std::string(piece), std::exchange(of.untold, {})));
}

void Generation::send(std::string event) {
  if (is_submitted_)
    exchange_->write(std::move(event));
  else
    early_.push_back(std::move(event));
}

void Generation::on_end() {
  bool is_over = false;
  {
    const std::scoped_lock lock(mutex_);
    is_over = ++num_ended_ == asked_.samples && is_submitted_;
  }
  if (is_over) finish();
}

void Generation::leave(Exchange::Left why) {
  const std::scoped_lock lock(mutex_);
  if (left_) return;
  left_ = why;
  for (Ticket& ticket : tickets_) ticket.cancel();
}

// Once, when all samples have ended and all tickets are known. Nothing calls back any more but leave().
void Generation::finish() {
  std::vector<Ticket> tickets;
  std::optional<Exchange::Left> left;
  {
    const std::scoped_lock lock(mutex_);
    left = left_;
    tickets = std::exchange(tickets_, {});  // which hold the callbacks, which hold this
  }
  try {
    std::vector<const Result*> results;
    for (const Ticket& ticket : tickets) results.push_back(&ticket.result());
    const bool is_cut = std::ranges::any_of(
        results, [](const Result* result) { return result->finish_reason == FinishReason::kCancelled; });
    if (!is_cut) return finish_well(results);
    parts_.metrics.add_cancelled();
    switch (left.value_or(Exchange::Left::kStopping)) {
      case Exchange::Left::kClient:
        return parts_.metrics.add_http(path_, 499);  // as nginx calls it
      case Exchange::Left::kTimeout:
        return finish_badly(504, "timeout", "the answer took too long");
      case Exchange::Left::kStopping:
        return finish_badly(503, "stopping", "the server stops");
    }
  } catch (const Error& error) {
    finish_badly(400, "invalid_request", error.what());
  } catch (const std::exception& error) {
    if (parts_.log) parts_.log("failed: " + log_text(error.what()));
    finish_badly(500, "internal_error", "the server could not compute the answer");
  } catch (...) {
    finish_badly(500, "internal_error", "the server could not compute the answer");
  }
}

void Generation::finish_well(const std::vector<const Result*>& results) {
  Timing timing{.first_token = seconds(Clock::now() - arrived_), .time_per_token = {}, .total = 0};
  for (const Sample& sample : samples_) {
    if (sample.tokens > 0) timing.first_token = std::min(timing.first_token, seconds(sample.first - arrived_));
    if (sample.tokens > 1)
      timing.time_per_token.push_back(seconds(sample.last - sample.first) / static_cast<double>(sample.tokens - 1));
  }
  timing.total = seconds(Clock::now() - arrived_);
  parts_.metrics.add_finished(asked_.policy_name, results, timing);
  parts_.metrics.add_http(path_, 200);
  if (!asked_.streams)
    return exchange_->answer({.body = form_.whole(results), .headers = {{"X-Espalier-Prefix", asked_.prefix}}});
  std::string events;
  for (size_t i = 0; i < results.size(); ++i)
    events += form_.end_event(static_cast<int>(i), *results[i], samples_[i].untold);
  exchange_->write(events + form_.usage_event(results) + AnswerForm::done_event());
  exchange_->end();
}

void Generation::finish_badly(int status, const std::string& code, const std::string& message) {
  const ApiError error(status, code, message);
  parts_.metrics.add_http(path_, status);
  if (!asked_.streams) return exchange_->answer(answer_of(error));
  exchange_->write(AnswerForm::error_event(body_of(error)));
  exchange_->end();
}

}  // namespace espalier::serve
