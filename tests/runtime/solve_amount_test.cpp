// SPDX-License-Identifier: Apache-2.0
// Targets in place of amounts. What is expected is counted from runs with each of the 64 amounts: their tokens by layer
// and bytes of cache, times made-up costs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "espalier/session.h"
#include "tests/runtime/made_up_costs.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::expect_says;
using test::message_of;

const std::filesystem::path& folder() {
  static const std::filesystem::path llava = test::golden_folder() / "llava15";
  return llava;
}

Engine load(const std::filesystem::path& costs = {}) {
  return Engine::load(folder(), {.dtype = ComputeDtype::kFloat32, .costs = costs});
}

// What a row costs: so long that the time which the test itself takes does not matter.
constexpr double kRow = 1e7;

// An engine for which only the decoder's rows cost something, and a candidate of fastv.
const Engine& engine() {
  static const test::ScratchFolder scratch;
  static const Engine e = load(scratch.write(
      "costs.json",
      costs_json(test::made_up_costs(
          folder(), {.encode = {},
                     .prefill = {{"row", kRow}},
                     .select = {{"divprune", {}}, {"fastv", {{"candidate", 2}}}, {"random", {{"step", 1e12}}}}}))));
  return e;
}

Request request_of(int shots, const std::string& policy, int64_t new_tokens = 3) {
  Request request;
  request.prompt = test::in_context_prompt(shots);
  request.policy = policy;
  request.options.max_new_tokens = new_tokens;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  return request;
}

double rows_of(const Result& result) {
  return static_cast<double>(
      std::accumulate(result.stats.tokens_per_layer.begin(), result.stats.tokens_per_layer.end(), int64_t{0}));
}

std::string at(const std::string& policy, int part) {
  return policy + (policy.find(':') == std::string::npos ? ":" : ",") + "keep_ratio=" + to_string(Fraction{part, 64});
}

// The most of 64 parts with which the decoder computes at most so many rows.
Result most_within(const std::string& policy, double rows) {
  for (int part = 64; part > 0; --part)
    if (Result result = engine().generate(request_of(2, at(policy, part))); rows_of(result) <= rows) return result;
  throw Error("no part fits");
}

class EveryTarget : public testing::TestWithParam<const char*> {};

TEST_P(EveryTarget, TimeIsMetWithTheMostThatFits) {
  const std::string policy = GetParam();
  const double whole = rows_of(engine().generate(request_of(2, "none")));
  for (const double part : {0.95, 0.75}) {
    SCOPED_TRACE(part);
    const double rows = std::floor(part * whole);
    const Result expected = most_within(policy, rows);
    const std::string target = (policy.find(':') == std::string::npos ? ":" : ",") + std::string("ttft=") +
                               std::to_string(static_cast<int64_t>((rows + 0.5) * kRow)) + "ms";
    const Result result = engine().generate(request_of(2, policy + target));
    ASSERT_TRUE(result.stats.solved);
    EXPECT_EQ(result.kept, expected.kept);
    EXPECT_EQ(result.token_ids, expected.token_ids);
    EXPECT_TRUE(result.stats.solved->fits);
    EXPECT_EQ(*result.stats.solved->predicted_ms, kRow * rows_of(result));
    EXPECT_LE(*result.stats.solved->allowed_ms, (rows + 1) * kRow);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, EveryTarget, testing::Values("divprune", "divprune:positions=compact"));

// Keys and values of prompt and answer: what was cached behind prefill, and a row a layer for each new token.
TEST(SolveAmount, CacheIsFilledAndNotPassed) {
  const Result whole = engine().generate(request_of(2, "none"));
  const int64_t row = whole.stats.kv_bytes / std::reduce(whole.stats.kv_tokens_per_layer.begin(),
                                                         whole.stats.kv_tokens_per_layer.end(), int64_t{0});
  const int64_t answer = 3 * row * std::ssize(whole.stats.kv_tokens_per_layer);
  for (const std::string policy : {"divprune", "fastv", "pyramiddrop", "random"}) {
    SCOPED_TRACE(policy);
    const int64_t bytes = whole.stats.kv_bytes * 4 / 5;
    const std::string kv = ":kv=" + std::to_string(bytes + answer) + "B";
    const Result result = engine().generate(request_of(2, policy + kv));
    ASSERT_TRUE(result.stats.solved);
    EXPECT_LE(result.stats.kv_bytes, bytes);
    EXPECT_EQ(result.stats.kv_bytes + answer, result.stats.solved->kv_bytes);
    EXPECT_FALSE(result.stats.solved->predicted_ms);
    // One part more would pass it.
    for (int part = 64; part > 0; --part) {
      const Result stated = engine().generate(request_of(2, at(policy, part)));
      if (stated.stats.kv_bytes > bytes) continue;
      EXPECT_EQ(result.kept, stated.kept) << part;
      break;
    }
  }
}

TEST(SolveAmount, OneOfAPipelineIsSolved) {
  const Result whole = engine().generate(request_of(2, "none"));
  const Result first = engine().generate(request_of(2, "divprune:keep_ratio=1/2"));
  const std::string kv = std::to_string(first.stats.kv_bytes * 9 / 10) + "B";
  const Result result = engine().generate(request_of(2, "divprune:keep_ratio=1/2 + fastv:kv=" + kv, 0));
  EXPECT_LE(result.stats.kv_bytes, first.stats.kv_bytes * 9 / 10);
  EXPECT_LT(result.kept.size(), first.kept.size());
  expect_says(result.stats.solved->policy, {"divprune:keep_ratio=1/2 + fastv:keep_ratio="});
  expect_says(message_of<Error>([] { make_policy("divprune:kv=1MB + fastv:kv=1MB"); }), {"one policy"});
}

TEST(SolveAmount, WhatFitsIsNotPruned) {
  const Result whole = engine().generate(request_of(1, "none"));
  for (const char* target : {"ttft=1e11ms", "kv=1GB", "ttft=1e8s,kv=1GB"}) {
    const Result result = engine().generate(request_of(1, std::string("divprune:") + target));
    EXPECT_EQ(result.stats.solved->policy, "none");
    EXPECT_TRUE(result.stats.solved->fits);
    EXPECT_EQ(result.kept, whole.kept);
    EXPECT_TRUE(result.points.empty());
  }
}

// `random` would take 31 years to select here: in time or not, all stays.
TEST(SolveAmount, NothingIsPrunedWhereThatTakesLonger) {
  const Result result = engine().generate(request_of(1, "random:ttft=5ms"));
  EXPECT_EQ(result.stats.solved->policy, "none");
  EXPECT_FALSE(result.stats.solved->fits);
  EXPECT_EQ(*result.stats.solved->predicted_ms, kRow * rows_of(result));
}

TEST(SolveAmount, AnUnreachableTimeGetsTheQuickest) {
  const Result result = engine().generate(request_of(2, "divprune:ttft=1ms"));
  EXPECT_FALSE(result.stats.solved->fits);
  EXPECT_EQ(result.kept, engine().generate(request_of(2, at("divprune", 1))).kept);
}

TEST(SolveAmount, AnUnreachableCacheIsRefused) {
  expect_says(message_of<Error>([] { engine().generate(request_of(2, "divprune:kv=1kB")); }),
              {"divprune:kv=1kB", "at least", "bytes", "3 new ones"});
}

TEST(SolveAmount, SelectionCountsByItsTokens) {
  const Result result = engine().generate(request_of(2, "fastv:ttft=1ms"));
  const double candidates =
      static_cast<double>(std::reduce(result.stats.image_tokens.begin(), result.stats.image_tokens.end(), int64_t{0}));
  if (result.stats.solved->policy == "none") GTEST_FAIL() << "pruning pays here";
  EXPECT_EQ(*result.stats.solved->predicted_ms, kRow * rows_of(result) + 2 * candidates);
}

TEST(SolveAmount, CostsAreNeededForTimeAlone) {
  const Engine plain = load();
  expect_says(message_of<Error>([&] { plain.generate(request_of(1, "divprune:ttft=1s")); }),
              {"ttft", "was not measured", "espalier calibrate"});
  EXPECT_NO_THROW(plain.generate(request_of(1, "divprune:kv=1GB")));
  expect_says(message_of<Error>([&] { engine().generate(request_of(1, "hiprune:ttft=1ms")); }),
              {"hiprune", "espalier calibrate --policy hiprune"});
}

// Samples share the amount, a session solves each turn, and one that forgets keeps what it forgot.
TEST(SolveAmount, SamplesAndSessions) {
  Scheduler scheduler(engine());
  const Request request = request_of(1, "divprune:ttft=100ms");
  const std::vector<Ticket> tickets = scheduler.submit(request, 3);
  for (const Ticket& ticket : tickets) {
    ASSERT_TRUE(ticket.result().stats.solved);
    EXPECT_EQ(ticket.result().stats.solved->policy, tickets[0].result().stats.solved->policy);
    EXPECT_EQ(ticket.result().kept, tickets[0].result().kept);
  }
  SessionOptions options;
  options.policy = "divprune:ttft=100ms";
  options.sticky = true;
  options.generation = request.options;
  Session session(engine(), options);
  const std::vector<int64_t> first =
      session.ask({ImagePart{.image = test::picture(64, 64, 1)}, TextPart{"What is this?"}}).kept;
  const Result second = session.ask("And its colour?");
  EXPECT_TRUE(second.stats.solved);
  for (const int64_t token : second.kept) EXPECT_TRUE(std::ranges::binary_search(first, token));
}

// The more wait behind a request, the less of it stays.
TEST(SolveAmount, LongerQueuesGetFewerTokens) {
  const double whole = kRow * rows_of(engine().generate(request_of(2, "none")));
  const Request request = request_of(2, "divprune:ttft=" + std::to_string(static_cast<int64_t>(3.9 * whole)) + "ms");
  double before = whole;
  for (int waiting = 1; waiting <= 6; ++waiting) {
    SCOPED_TRACE(waiting);
    Scheduler scheduler(engine(), {.own_thread = false});
    std::vector<Ticket> tickets;
    for (int i = 0; i < waiting; ++i) tickets.push_back(scheduler.submit(request));
    while (scheduler.step()) {
    }
    const SolvedAmount& first = *tickets[0].result().stats.solved;
    EXPECT_NEAR(*first.allowed_ms, 3.9 * whole / waiting, 0.01 * whole);
    EXPECT_EQ(first.policy == "none", waiting <= 3);
    EXPECT_LE(*first.predicted_ms, before);
    before = *first.predicted_ms;
    EXPECT_EQ(tickets.back().result().stats.solved->policy, "none");  // nobody behind it
  }
  EXPECT_LT(before, 0.8 * whole);
}

}  // namespace
}  // namespace espalier
