// SPDX-License-Identifier: Apache-2.0
// Requests that come and go: whatever else runs, each is answered as it would be alone.
#include "espalier/scheduler.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "espalier/error.h"
#include "espalier/policies/table.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using namespace std::chrono_literals;

Engine load(const char* checkpoint) {
  return Engine::load(test::golden_folder() / checkpoint, {.dtype = ComputeDtype::kFloat32});
}

const Engine& engine() {
  static const Engine e = load("llava15");
  return e;
}

Request request_of(int shots, const std::string& policy, int64_t new_tokens) {
  Request request;
  request.prompt = test::in_context_prompt(shots);
  request.policy = policy;
  request.options.max_new_tokens = new_tokens;
  request.options.ignore_eos = true;
  return request;
}

std::string read_all(Ticket ticket) {
  std::string text, piece;
  for (Ticket::Next next; (next = ticket.next(piece, 10s)) != Ticket::Next::kEnd;) {
    if (next == Ticket::Next::kTimeout) throw Error("nothing came for ten seconds");
    text += piece;
  }
  return text;
}

TEST(Scheduler, AnswersAsTheEngineDoes) {
  Scheduler scheduler(engine());
  std::vector<Ticket> tickets;
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(request_of(i % 3, i % 2 ? "catp:keep_ratio=1/3" : "fastv:keep_ratio=1/2", 4 + 5 * i));
    if (i == 4) {
      requests.back().options.do_sample = true;
      requests.back().options.temperature = 1.5;
      requests.back().options.seed = 7;
    }
    tickets.push_back(scheduler.submit(requests.back()));
  }
  for (size_t i = 0; i < tickets.size(); ++i) {
    SCOPED_TRACE(i);
    const Result alone = engine().generate(requests[i]);
    EXPECT_EQ(read_all(tickets[i]), alone.text);
    EXPECT_TRUE(tickets[i].is_done());
    const Result& result = tickets[i].result();
    EXPECT_EQ(result.token_ids, alone.token_ids);
    EXPECT_EQ(result.kept, alone.kept);
    EXPECT_EQ(result.stats.tokens_per_layer, alone.stats.tokens_per_layer);
  }
  EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
  EXPECT_EQ(scheduler.load().kv_bytes_promised, 0);
}

// What is told of each new token as it comes is what the result holds, and the end is told once.
TEST(Scheduler, TellsTokensAndTheEnd) {
  Scheduler scheduler(engine());
  Request request = request_of(1, "fastv:keep_ratio=1/2", 6);
  request.options.top_logprobs = 3;
  std::vector<TokenLogprobs> told;
  std::vector<int32_t> ids;
  std::atomic<int> ends = 0;
  Callbacks callbacks;
  callbacks.on_token = [&](size_t, int32_t id, const TokenLogprobs* logprobs) {
    ids.push_back(id);
    if (logprobs) told.push_back(*logprobs);
  };
  callbacks.on_end = [&](size_t) { ++ends; };
  const Ticket ticket = scheduler.submit(request, callbacks);
  const Result result = ticket.result();
  for (int i = 0; i < 1000 && ends == 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(ids, result.token_ids);
  EXPECT_EQ(told, result.logprobs);
  ASSERT_EQ(told.size(), 6U);
  EXPECT_EQ(told[5].id, result.token_ids[5]);
  EXPECT_EQ(told[5].top.size(), 3U);
  request.options.top_logprobs = 21;
  test::expect_says(test::message_of<Error>([&] { scheduler.submit(request); }), {"top_logprobs", "20", "21"});
}

TEST(Scheduler, RefusesMoreThanMayWait) {
  Scheduler scheduler(engine(), {.max_waiting = 2, .own_thread = false});
  scheduler.submit(request_of(0, "none", 2));
  scheduler.submit(request_of(0, "none", 2));
  EXPECT_THROW(scheduler.submit(request_of(0, "none", 2)), QueueFull);
  while (scheduler.step()) {
  }
  EXPECT_NO_THROW(scheduler.submit(request_of(0, "none", 2)));
}

TEST(Scheduler, StepsInALoopOfTheCallers) {
  Scheduler scheduler(engine(), {.own_thread = false});
  EXPECT_FALSE(scheduler.step());
  Ticket ticket = scheduler.submit(request_of(1, "none", 5));
  std::string piece;
  EXPECT_EQ(ticket.next(piece, 1ms), Ticket::Next::kTimeout);
  EXPECT_EQ(scheduler.load().waiting, 1);
  int steps = 0;
  while (scheduler.step()) ++steps;
  EXPECT_EQ(steps, 2 + 8 + 3);  // two pictures, eight layers with two tokens behind the last, the other tokens
  EXPECT_EQ(ticket.result().token_ids, engine().generate(request_of(1, "none", 5)).token_ids);
}

TEST(Scheduler, RefusesAtSubmit) {
  Scheduler scheduler(engine(), {.kv_bytes = 400'000});
  test::expect_says(test::message_of<Error>([&] { scheduler.submit(request_of(0, "magic", 4)); }), {"magic"});
  const std::string never = test::message_of<Error>([&] { scheduler.submit(request_of(3, "none", 100)); });
  test::expect_says(never, {"bytes", "400000"});
  EXPECT_EQ(scheduler.submit(request_of(0, "none", 2)).result().token_ids.size(), 2U);
}

// Bytes for one request at a time: they wait for each other, and all are answered.
TEST(Scheduler, WhatDoesNotFitWaits) {
  const Request request = request_of(0, "none", 6);
  const int64_t tokens = engine().count_tokens(request.prompt).prompt_tokens + 6;
  const int64_t bytes = 8 * tokens * 2 * 4 * 32 * 4;
  Scheduler scheduler(engine(), {.kv_bytes = bytes + bytes / 2, .own_thread = false});
  std::vector<Ticket> tickets;
  for (int i = 0; i < 3; ++i) tickets.push_back(scheduler.submit(request));
  int64_t most = 0;
  while (scheduler.step()) {
    EXPECT_LE(scheduler.load().running, 1);
    most = std::max(most, scheduler.load().kv_bytes_promised);
  }
  EXPECT_EQ(most, bytes);
  for (const Ticket& ticket : tickets) EXPECT_EQ(ticket.result().token_ids.size(), 6U);
}

// What a request may take is known from its policy's budgets: never less than it takes, and less than unpruned.
TEST(Scheduler, PromisesAreKept) {
  const auto promised = [](const LoadedModel& model, const Request& request) {
    return RequestRun(model, request, 0, std::make_shared<Call>(Callbacks())).kv_bytes;
  };
  for (const char* checkpoint : {"llava15", "llava_next_vicuna", "qwen2vl"}) {
    const LoadedModel& model = test::tiny_model(checkpoint);
    for (const PolicyEntry& entry : policy_table())
      for (const PolicyExample& example : entry.examples) {
        SCOPED_TRACE(std::string(checkpoint) + " " + std::string(example.spec));
        if (example.spec.find(".json") != std::string_view::npos || !entry.refusal(model.facts).empty()) continue;
        const Request request = request_of(2, std::string(example.spec), 3);
        EXPECT_GE(promised(model, request), generate(model, request).stats.kv_bytes_most);
      }
  }
  const LoadedModel& model = test::tiny_llava();
  const int64_t whole = promised(model, request_of(2, "none", 3));
  const Request pruned = request_of(2, "fastv:keep_ratio=1/4,layer=3", 3);
  const int64_t row = bytes_per_kv_row(model.config.decoder, model.dtype);
  EXPECT_EQ(promised(model, pruned), generate(model, pruned).stats.kv_bytes + 3 * 8 * row);
  const Request contextual = request_of(2, "catp:keep_ratio=2/9,k=3", 3);
  EXPECT_EQ(promised(model, contextual), generate(model, contextual).stats.kv_bytes + 3 * 8 * row);
  EXPECT_LT(promised(model, contextual), whole);
}

// In encode, in every layer of prefill and in decoding: within one step nothing of it is left.
TEST(Scheduler, CancelTakesEffectWithinAStep) {
  int steps_of_all = 0;
  {
    Scheduler scheduler(engine(), {.own_thread = false});
    scheduler.submit(request_of(2, "catp:keep_ratio=1/3", 8));
    while (scheduler.step()) ++steps_of_all;
  }
  for (int stop = 0; stop < steps_of_all; ++stop) {
    SCOPED_TRACE(stop);
    Scheduler scheduler(engine(), {.own_thread = false});
    Ticket cancelled = scheduler.submit(request_of(2, "catp:keep_ratio=1/3", 8));
    Ticket other = scheduler.submit(request_of(0, "none", 3));
    for (int i = 0; i < stop; ++i) scheduler.step();
    const bool was_done = cancelled.is_done();
    cancelled.cancel();
    scheduler.step();
    EXPECT_TRUE(cancelled.is_done());
    EXPECT_EQ(cancelled.result().finish_reason, was_done ? FinishReason::kLength : FinishReason::kCancelled);
    while (scheduler.step()) {
    }
    EXPECT_EQ(other.result().token_ids.size(), 3U);
    EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
  }
}

// A prompt that arrives while an answer runs lets it go on behind each of its layers.
// Samples of one prompt: each as a request of its own with that seed, over one prompt's rows.
TEST(Scheduler, SamplesShareTheirPrompt) {
  for (const char* policy : {"none", "catp:keep_ratio=1/3", "plphp:keep_ratio=1/2"}) {
    SCOPED_TRACE(policy);
    Request request = request_of(2, policy, 9);
    request.options.do_sample = true;
    request.options.temperature = 2.0;
    request.options.seed = 40;
    Scheduler scheduler(engine(), {.own_thread = false});
    const std::vector<Ticket> tickets = scheduler.submit(request, 5);
    EXPECT_EQ(scheduler.load().waiting, 5);
    int64_t most = 0;
    while (scheduler.step()) most = std::max(most, scheduler.load().kv_bytes_in_use);
    const Result alone = engine().generate(request);
    EXPECT_LT(most, 2 * alone.stats.kv_bytes + 5 * 8 * 64 * int64_t{2 * 4 * 32 * 4});
    for (size_t i = 0; i < tickets.size(); ++i) {
      SCOPED_TRACE(i);
      request.options.seed = 40 + i;
      const Result expected = engine().generate(request);
      EXPECT_EQ(tickets[i].result().token_ids, expected.token_ids);
      EXPECT_EQ(tickets[i].result().text, expected.text);
      EXPECT_EQ(tickets[i].result().kept, expected.kept);
      EXPECT_EQ(tickets[i].result().stats.tokens_per_layer, expected.stats.tokens_per_layer);
    }
    EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
    EXPECT_EQ(scheduler.load().kv_bytes_promised, 0);
    EXPECT_EQ(scheduler.load().running, 0);
  }
  EXPECT_THROW(Scheduler(engine()).submit(request_of(0, "none", 2), 0), Error);
}

// Whoever of them leaves, and when: the others are answered, and nobody computes for none.
TEST(Scheduler, SamplesLeaveOneByOne) {
  const Request request = request_of(1, "none", 6);
  const std::vector<int32_t> expected = engine().generate(request).token_ids;
  for (const int steps : {0, 1, 3, 7, 11})
    for (const size_t leaving : {size_t{0}, size_t{1}}) {
      SCOPED_TRACE(testing::Message() << steps << " steps, sample " << leaving);
      Scheduler scheduler(engine(), {.own_thread = false});
      std::vector<Ticket> tickets = scheduler.submit(request, 3);
      for (int i = 0; i < steps; ++i) scheduler.step();
      tickets[leaving].cancel();
      while (scheduler.step()) {
      }
      for (size_t i = 0; i < tickets.size(); ++i) {
        const Result& result = tickets[i].result();
        if (i == leaving)
          EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
        else
          EXPECT_EQ(result.token_ids, expected);
      }
      EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
    }
  Scheduler scheduler(engine(), {.own_thread = false});
  std::vector<Ticket> tickets = scheduler.submit(request, 2);
  for (int i = 0; i < 4; ++i) scheduler.step();
  for (Ticket& ticket : tickets) ticket.cancel();
  EXPECT_TRUE(scheduler.step());
  EXPECT_FALSE(scheduler.step());
  for (const Ticket& ticket : tickets) EXPECT_EQ(ticket.result().finish_reason, FinishReason::kCancelled);
}

TEST(Scheduler, RunningAnswersGoOnBetweenLayers) {
  Scheduler scheduler(engine(), {.own_thread = false});
  Ticket runs = scheduler.submit(request_of(0, "none", 100));
  const auto tokens_so_far = [&] {
    static thread_local std::string piece;
    int64_t pieces = 0;
    while (runs.next(piece, 0ms) == Ticket::Next::kText) ++pieces;
    return pieces;
  };
  while (tokens_so_far() == 0) scheduler.step();
  Ticket comes = scheduler.submit(request_of(3, "none", 2));
  int waiting = 0, longest = 0;
  while (!comes.is_done()) {
    scheduler.step();
    waiting = tokens_so_far() > 0 ? 0 : waiting + 1;
    longest = std::max(longest, waiting);
  }
  EXPECT_LE(longest, 4);  // pieces of text are not tokens: some become certain only with the next
  runs.cancel();
  while (scheduler.step()) {
  }
}

// What a callback throws ends its own request.
TEST(Scheduler, CallbacksFailAlone) {
  Scheduler scheduler(engine());
  Callbacks bad;
  bad.on_text = [](size_t, std::string_view) -> Continue { throw Error("no more"); };
  const Ticket fails = scheduler.submit(request_of(1, "none", 12), bad);
  const Ticket goes_on = scheduler.submit(request_of(0, "none", 12));
  EXPECT_EQ(test::message_of<Error>([&] { fails.result(); }), "no more");
  EXPECT_EQ(goes_on.result().token_ids, engine().generate(request_of(0, "none", 12)).token_ids);
}

// What throws in the middle of a layer, between the cut and the rows of the others behind it.
TEST(Scheduler, TracesFailAlone) {
  Scheduler scheduler(engine(), {.own_thread = false});
  Callbacks bad;
  bad.on_point = [](size_t, const PointTrace&) { throw Error("no more points"); };
  const std::vector<Request> requests = {request_of(1, "fastv:keep_ratio=1/2,layer=3", 5),
                                         request_of(2, "fastv:keep_ratio=1/4,layer=3", 5),
                                         request_of(0, "fastv:keep_ratio=1/3,layer=3", 5)};
  std::vector<Ticket> tickets;
  for (size_t i = 0; i < requests.size(); ++i)
    tickets.push_back(scheduler.submit(requests[i], i == 1 ? bad : Callbacks()));
  while (scheduler.step()) {
  }
  EXPECT_EQ(test::message_of<Error>([&] { tickets[1].result(); }), "no more points");
  for (const size_t i : {size_t{0}, size_t{2}})
    EXPECT_EQ(tickets[i].result().token_ids, engine().generate(requests[i]).token_ids);
}

TEST(Scheduler, DroppedItCancels) {
  std::optional<Ticket> ticket;
  {
    Scheduler scheduler(engine());
    ticket = scheduler.submit(request_of(3, "none", 2000));
  }
  EXPECT_EQ(ticket->result().finish_reason, FinishReason::kCancelled);
}

TEST(Engine, ACallbackMayAskAgain) {
  std::vector<int32_t> inner;
  Callbacks callbacks;
  callbacks.on_text = [&](size_t, std::string_view) {
    if (inner.empty()) inner = engine().generate(request_of(0, "none", 3)).token_ids;
    return Continue::kGo;
  };
  engine().generate(request_of(1, "none", 6), callbacks);
  EXPECT_EQ(inner, engine().generate(request_of(0, "none", 3)).token_ids);
}

// ---- everything at once ----

struct Planned {
  Request request;
  std::vector<int32_t> token_ids;
  std::vector<int64_t> kept;
  std::string refusal;
};

// Random requests, those that are refused among them, with what each comes to alone.
std::vector<Planned> plan_requests(const Engine& e, size_t number, uint32_t seed) {
  std::mt19937 random(seed);
  const auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  std::vector<std::string> specs = {"none", "magic"};
  for (const PolicyEntry& entry : policy_table())
    for (const PolicyExample& example : entry.examples)
      if (example.spec.find(".json") == std::string_view::npos) specs.emplace_back(example.spec);
  std::vector<Planned> all;
  for (size_t i = 0; i < number; ++i) {
    Planned planned;
    Request& request = planned.request;
    if (draw(0, 9) == 0)
      request.prompt = RawPrompt{"USER: How are you? ASSISTANT:", {}, {}};
    else
      request.prompt = test::in_context_prompt(static_cast<int>(draw(0, 7)));
    request.policy = specs[static_cast<size_t>(draw(0, std::ssize(specs) - 1))];
    request.options.max_new_tokens = draw(0, 14);
    request.options.ignore_eos = draw(0, 1) == 0;
    if (draw(0, 2) == 0) {
      request.options.do_sample = true;
      request.options.temperature = 0.5 + 0.1 * static_cast<double>(draw(0, 15));
      request.options.seed = static_cast<uint64_t>(draw(0, 1000));
    }
    try {
      const Result alone = e.generate(request);
      planned.token_ids = alone.token_ids;
      planned.kept = alone.kept;
    } catch (const Error& error) {
      planned.refusal = error.what();
    }
    all.push_back(std::move(planned));
  }
  return all;
}

void submit_from_threads(const Engine& e, const std::vector<Planned>& planned, int num_threads) {
  Scheduler scheduler(e);
  std::atomic<size_t> next = 0;
  std::atomic<int> answered = 0, cancelled = 0, refused = 0, wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < num_threads; ++t)
    threads.emplace_back([&, t] {
      std::mt19937 random(static_cast<uint32_t>(t));
      for (size_t i; (i = next++) < planned.size();) {
        std::this_thread::sleep_for(std::chrono::microseconds(std::uniform_int_distribution<int>(0, 3000)(random)));
        try {
          Ticket ticket = scheduler.submit(planned[i].request);
          const bool cancels = random() % 6 == 0;
          if (cancels) {
            std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
            ticket.cancel();
          }
          const Result& result = ticket.result();
          if (result.finish_reason == FinishReason::kCancelled) {
            ++cancelled;
            wrong +=
                !cancels || !std::equal(result.token_ids.begin(), result.token_ids.end(), planned[i].token_ids.begin());
          } else {
            ++answered;
            wrong += result.token_ids != planned[i].token_ids || result.kept != planned[i].kept ||
                     !planned[i].refusal.empty();
          }
        } catch (const Error& error) {
          ++refused;
          wrong += planned[i].refusal != error.what();
        }
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(answered + cancelled + refused, static_cast<int>(planned.size()));
  EXPECT_GT(answered, 0);
  EXPECT_GT(refused, 0);
  EXPECT_EQ(scheduler.load().running, 0);
  EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
  EXPECT_EQ(scheduler.load().kv_bytes_promised, 0);
}

class SchedulerUnderLoad : public ::testing::TestWithParam<const char*> {};

TEST_P(SchedulerUnderLoad, EveryAnswerIsItsOwn) {
  const Engine e = load(GetParam());
  submit_from_threads(e, plan_requests(e, 50, 11), 8);
}

INSTANTIATE_TEST_SUITE_P(Families, SchedulerUnderLoad,
                         ::testing::Values("llava15", "llava_next_mistral", "llava_next_vicuna", "qwen25vl",
                                           "qwen2vl"));

}  // namespace
}  // namespace espalier
