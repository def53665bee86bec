// SPDX-License-Identifier: Apache-2.0
// Steps that are asked again while decoding: what they cut and bring back equals a masked run that changes its mask at
// the same generated tokens, whatever else is in the batch; a replay keeps what the run kept; and memory is what the
// rows take.
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/engine_impl.h"
#include "runtime/generate.h"
#include "tests/runtime/arrays.h"
#include "tests/runtime/masked_run.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using test::Answered;
using test::expect_says;
using test::message_of;
using test::tiny_llava;
using Tokens = std::vector<int64_t>;

const Engine& engine() {
  static const Engine e = Engine::load(test::tiny_llava_folder(), {.dtype = ComputeDtype::kFloat32});
  return e;
}

PolicyPtr random_again(const LoadedModel& model, std::vector<int> layers, int every, bool revives, uint32_t seed = 3) {
  return std::make_shared<test::RandomKeepAgain>(std::move(layers), every, revives, seed, model.facts.num_kv_heads);
}

std::vector<int> all_layers(const LoadedModel& model) {
  std::vector<int> layers;
  for (int layer = 0; layer < model.facts.num_layers; ++layer) layers.push_back(layer);
  return layers;
}

// The tokens of one head that each ask kept, layer by layer.
std::map<int, std::vector<Tokens>> sets_of(const std::vector<PointTrace>& points) {
  std::map<int, std::vector<Tokens>> sets;
  for (const PointTrace& point : points) sets[point.layer].push_back(point.kept_per_head.at(0));
  return sets;
}

// ---- exactness ----

class Reselection : public testing::TestWithParam<const char*> {
 protected:
  const LoadedModel& model() const { return test::tiny_model(GetParam()); }
  void expect_equals_masked_run(const Prompt& prompt, const PolicyPtr& policy, int new_tokens) {
    std::vector<Sequence> sequences;
    sequences.push_back(test::sequence_for(model(), prompt, policy));
    const Answered run = test::run_packed(model(), sequences, new_tokens)[0];
    test::expect_equals_masked_run(model(), prompt, sequences[0], run);
    points_ = sequences[0].walk.trace(false);
  }
  std::vector<PointTrace> points_;
};

TEST_P(Reselection, EqualsAMaskedRunThatChangesItsMask) {
  for (const auto& [every, layers] :
       {std::pair(1, all_layers(model())), std::pair(3, std::vector<int>{0, 3, 4, 7}), std::pair(5, std::vector{2})}) {
    for (const bool revives : {true, false}) {
      SCOPED_TRACE(std::to_string(every) + (revives ? ", held" : ", freed"));
      expect_equals_masked_run(test::in_context_prompt(2), random_again(model(), layers, every, revives), 17);
      EXPECT_EQ(points_.size(), layers.size() * (1 + 16 / static_cast<size_t>(every)));
      bool came_back = false, was_freed = false;
      for (const auto& [layer, sets] : sets_of(points_))
        for (size_t i = 1; i < sets.size(); ++i) {
          came_back |= !std::ranges::includes(sets[i - 1], sets[i]);
          was_freed |= sets[i].size() < sets[i - 1].size();
        }
      EXPECT_EQ(came_back, revives);
      EXPECT_TRUE(was_freed || layers.size() == 1);  // of one layer the first set may be the smallest
    }
  }
}

// Behind policies that shorten the stream, whose tokens then never reach the layer.
TEST_P(Reselection, BehindAShortenedStream) {
  const PolicyPtr policy =
      chain({make_policy("uniform:keep_ratio=1/2,row_breaks=follow"),
             make_policy("fastv:keep_ratio=1/3,layer=3,row_breaks=follow"), random_again(model(), {4, 6}, 2, true)});
  expect_equals_masked_run(test::in_context_prompt(2), policy, 11);
}

Request request_of(int shots, const std::string& policy, int64_t new_tokens) {
  Request request{
      .prompt = test::in_context_prompt(shots), .policy = policy, .custom = {}, .options = {}, .trace = true};
  request.options.max_new_tokens = new_tokens;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  return request;
}

constexpr const char* kPolicies[] = {"fastv:keep_ratio=1/3,layer=3,every=1",
                                     "fastv:num_kept=3,layer=1,every=3,pool=image",
                                     "plphp:every=2",
                                     "plphp:every=2,revival=no,alpha=0.5,beta=0.3",
                                     "persistence:keep_ratio=1/2,every=2",
                                     "persistence:num_kept=9,every=3,decay=0.5,revival=yes,layer=0",
                                     "visionpulse",
                                     "visionpulse:layer=2,tau=1,least=1/9,most=1/2,every=2",
                                     "divprune:keep_ratio=1/2 + persistence:keep_ratio=1/3,every=1"};

TEST_P(Reselection, OfThePoliciesEqualsAMaskedRun) {
  for (const char* spec : kPolicies) {
    SCOPED_TRACE(spec);
    expect_equals_masked_run(test::in_context_prompt(2), make_policy(spec), 13);
    const auto is_later = [](const PointTrace& point) { return point.generated > 0; };
    EXPECT_TRUE(std::ranges::any_of(points_, is_later));
  }
}

// A recording of the run has what each step read, and a replay of it keeps the same.
TEST_P(Reselection, RecordEqualsReplay) {
  for (const char* spec : kPolicies) {
    SCOPED_TRACE(spec);
    const test::ScratchFolder folder;
    const auto at = [&](const char* name) { return folder.path() / name; };
    const Request request = request_of(2, spec, 10);
    record(model(), request, {.signals = at("s.safetensors"), .layout = at("l.json"), .only = {}, .generated = 9}, {});
    replay(make_policy(spec), {.signals = at("s.safetensors"), .layout = at("l.json"), .out = at("out.json")});
    const auto replayed = nlohmann::json::parse(test::read_file(at("out.json")));
    const Result live = generate(model(), request);
    EXPECT_EQ(replayed.at("kept").get<Tokens>(), live.kept);
    ASSERT_EQ(replayed.at("points").size(), live.points.size());
    std::set<int64_t> with_tokens;
    for (size_t i = 0; i < live.points.size(); ++i) {
      SCOPED_TRACE(i);
      const auto& point = replayed["points"][i];
      with_tokens.insert(live.points[i].generated);
      EXPECT_EQ(point.value("layer", -1), live.points[i].layer);
      EXPECT_EQ(point.value("generated", 0), live.points[i].generated);
      if (!live.points[i].kept_per_head.empty())
        EXPECT_EQ(point.at("kept").get<std::vector<Tokens>>(), live.points[i].kept_per_head);
      const auto scores = point.value("scores", std::vector<double>{});
      ASSERT_EQ(scores.size(), live.points[i].scores.size());
      for (size_t s = 0; s < scores.size(); ++s) EXPECT_NEAR(scores[s], live.points[i].scores[s], 1e-3) << s;
    }
    EXPECT_GT(with_tokens.size(), 3U);
  }
}

// An unpruned recording with its answer is enough up to the first verdict, and says of how many tokens it is.
TEST_P(Reselection, AnUnprunedRecordingSaysHowManyTokensItHas) {
  const test::ScratchFolder folder;
  const auto at = [&](const char* name) { return folder.path() / name; };
  record(model(), request_of(1, "none", 4),
         {.signals = at("s.safetensors"), .layout = at("l.json"), .only = {"generated.attention.3"}, .generated = 3},
         {});
  EXPECT_EQ(nlohmann::json::parse(test::read_file(at("l.json"))).at("num_generated"), 3);
  const auto arrays = test::read_arrays(at("s.safetensors"));
  ASSERT_EQ(arrays.size(), 1U);
  const at::Tensor& attention = arrays.at("generated.attention.3");
  const int64_t n = attention.size(2) - 3;
  EXPECT_EQ(attention.size(0), model().facts.num_heads);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor row = attention.select(1, i);
    EXPECT_TRUE(row.slice(1, 0, n + i + 1).sum(1).allclose(at::ones({row.size(0)}), 1e-5, 1e-5));
    EXPECT_TRUE(row.slice(1, n + i + 1).eq(0).all().item<bool>());
  }
}

INSTANTIATE_TEST_SUITE_P(Families, Reselection, testing::Values("llava15", "llava_next_vicuna", "qwen2vl", "qwen25vl"),
                         [](const auto& instance) { return std::string(instance.param); });

TEST(Reselection, ARecordingWithoutTheAnswerNamesWhatIsMissing) {
  const test::ScratchFolder folder;
  const auto at = [&](const char* name) { return folder.path() / name; };
  record(tiny_llava(), request_of(1, "none", 4),
         {.signals = at("s.safetensors"), .layout = at("l.json"), .only = {"attention"}, .generated = 3}, {});
  const ReplayFiles files{.signals = at("s.safetensors"), .layout = at("l.json"), .out = at("out.json")};
  expect_says(message_of<Error>([&] { replay(make_policy("persistence:keep_ratio=1/3"), files); }),
              {"generated.attention.2", "not recorded"});
}

// ---- batches ----

// Each of a running batch answers as alone, whatever the others' policies do to the pass between.
TEST(ReselectionBatch, EachEqualsItsLoneRun) {
  std::vector<Request> requests;
  for (int i = 0; const char* spec : kPolicies) requests.push_back(request_of(i++ % 3, spec, 12));
  requests.push_back(request_of(1, "none", 12));
  requests.push_back(request_of(2, "fastv:keep_ratio=1/4", 12));
  const std::vector<Result> together = engine().generate(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    SCOPED_TRACE(requests[i].policy);
    const Result alone = engine().generate(requests[i]);
    EXPECT_EQ(together[i].token_ids, alone.token_ids);
    ASSERT_EQ(together[i].points.size(), alone.points.size());
    for (size_t p = 0; p < alone.points.size(); ++p) {
      EXPECT_EQ(together[i].points[p].generated, alone.points[p].generated);
      EXPECT_EQ(together[i].points[p].kept_per_head, alone.points[p].kept_per_head);
    }
  }
}

// What is known of a prompt's beginning is of the layers below the first cache that is cut.
TEST(ReselectionBatch, BehindACachedBeginningItIsTheSame) {
  for (const char* spec :
       {"fastv:keep_ratio=1/3,layer=3,every=1", "persistence:keep_ratio=1/2,every=2", "visionpulse"}) {
    SCOPED_TRACE(spec);
    const Request request = request_of(3, spec, 9);
    const Result alone = engine().generate(request);
    Scheduler scheduler(engine(), {.prefix_cache_bytes = int64_t{1} << 26, .own_thread = false});
    for (const bool is_known : {false, true}) {
      Ticket ticket = scheduler.submit(request);
      while (scheduler.step()) {
      }
      EXPECT_EQ(ticket.result().stats.reused_tokens > 0, is_known);
      EXPECT_EQ(ticket.result().token_ids, alone.token_ids);
      ASSERT_EQ(ticket.result().points.size(), alone.points.size());
      for (size_t p = 0; p < alone.points.size(); ++p)
        EXPECT_EQ(ticket.result().points[p].kept_per_head, alone.points[p].kept_per_head) << p;
    }
  }
}

// Each answer decides for itself, so the answers to one prompt do not share its rows.
TEST(ReselectionBatch, SamplesEqualRequestsOfTheirOwn) {
  for (const char* spec : {"persistence:keep_ratio=1/2,every=2", "visionpulse"}) {
    SCOPED_TRACE(spec);
    Request request = request_of(1, spec, 9);
    request.options.greedy = false;
    request.options.do_sample = true;
    request.options.temperature = 2.0;
    request.options.seed = 40;
    Scheduler scheduler(engine(), {.own_thread = false});
    const std::vector<Ticket> tickets = scheduler.submit(request, 3);
    while (scheduler.step()) {
    }
    for (size_t i = 0; i < tickets.size(); ++i) {
      request.options.seed = 40 + i;
      const Result alone = engine().generate(request);
      EXPECT_EQ(tickets[i].result().token_ids, alone.token_ids);
      EXPECT_EQ(tickets[i].result().points.size(), alone.points.size());
    }
    EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
    EXPECT_EQ(scheduler.load().kv_bytes_promised, 0);
  }
}

// Throws with the third generated token.
struct FailsLater : PruningPolicy {
  std::string spec() const override { return "fails_later"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    return {{.at = {Site::kCache, 1},
             .budget = {.is_adaptive = true},
             .decide = [asked = std::make_shared<int>(0)](const TokenLayout& layout,
                                                          std::span<const at::Tensor>) -> Verdict {
               if (++*asked == 4) throw Error("it fails later");
               return {.scores = at::ones({layout.num_image_tokens()}), .num_kept = {3}};
             },
             .every = 1}};
  }
};

TEST(ReselectionBatch, WhatAPolicyThrowsWhileDecodingIsItsOwnRequestsAffair) {
  Scheduler scheduler(engine(), {.own_thread = false});
  Request failing = request_of(1, "", 9);
  failing.custom = std::make_shared<FailsLater>();
  Ticket failed = scheduler.submit(failing), good = scheduler.submit(request_of(2, "visionpulse", 9));
  while (scheduler.step()) {
  }
  expect_says(message_of<Error>([&] { failed.result(); }), {"it fails later"});
  EXPECT_EQ(good.result().token_ids, engine().generate(request_of(2, "visionpulse", 9)).token_ids);
  EXPECT_EQ(scheduler.load().kv_bytes_in_use, 0);
}

// ---- memory ----

struct Watched {
  Result result;
  std::vector<int64_t> in_use;  // bytes behind each step with this request's rows
  int64_t promised = 0;
};

Watched watched(const Request& request) {
  Scheduler scheduler(engine(), {.own_thread = false});
  Ticket ticket = scheduler.submit(request);
  Watched w;
  while (scheduler.step()) {
    const SchedulerLoad load = scheduler.load();
    if (load.kv_bytes_in_use > 0) w.in_use.push_back(load.kv_bytes_in_use);
    w.promised = std::max(w.promised, load.kv_bytes_promised);
  }
  w.result = ticket.result();
  return w;
}

TEST(ReselectionMemory, HeldRowsAreCountedAndFreedOnesAreGivenBack) {
  const int64_t row = bytes_per_kv_row(tiny_llava().config.decoder, tiny_llava().dtype);
  const int layers = tiny_llava().facts.num_layers;
  const Watched none = watched(request_of(2, "none", 20)), held = watched(request_of(2, "visionpulse", 20)),
                freed = watched(request_of(2, "persistence:keep_ratio=1/3,every=1,layer=0", 20));
  // What is held takes as much as what is attended to.
  EXPECT_EQ(held.result.stats.kv_bytes, none.result.stats.kv_bytes);
  EXPECT_EQ(held.result.stats.kv_bytes_most, none.result.stats.kv_bytes_most);
  EXPECT_EQ(held.result.stats.kv_bytes_most, held.result.stats.kv_bytes + 19 * layers * row);
  // Freed rows make room for the answer: prompt and answer are never more than behind prefill and its first token.
  const int64_t m = 48, amount = 16, text = none.result.stats.prompt_tokens - m;
  EXPECT_EQ(freed.result.stats.kv_bytes, layers * (text + amount) * row);
  EXPECT_EQ(freed.result.stats.kv_bytes_most, layers * (text + std::max<int64_t>(amount, 19)) * row);
  for (const Watched* w : {&none, &held, &freed}) EXPECT_LE(*std::ranges::max_element(w->in_use), w->promised);
  for (const Watched* w : {&none, &held})
    EXPECT_GE(*std::ranges::max_element(w->in_use), w->result.stats.kv_bytes_most);
  EXPECT_LT(freed.in_use.back(), freed.result.stats.kv_bytes_most);  // no row is held for later
}

// The bound holds at each step of a long answer, and the amount is the most that it allows.
TEST(ReselectionMemory, ABudgetInBytesHoldsThroughALongAnswer) {
  const int64_t row = bytes_per_kv_row(tiny_llava().config.decoder, tiny_llava().dtype);
  const int layers = tiny_llava().facts.num_layers;
  const int64_t prompt = engine().count_tokens(test::in_context_prompt(3)).prompt_tokens, m = 64, text = prompt - m;
  constexpr int64_t kAnswer = 40;
  for (const int every : {1, 3, 8}) {
    SCOPED_TRACE(every);
    const int64_t bytes = (layers * (text + kAnswer + 20)) * row + 100;
    const Request request = request_of(
        3, "persistence:layer=0,every=" + std::to_string(every) + ",kv=" + std::to_string(bytes) + "B", kAnswer);
    const Watched run = watched(request);
    ASSERT_EQ(run.result.token_ids.size(), static_cast<size_t>(kAnswer));
    EXPECT_LE(run.promised, bytes);
    EXPECT_GT(run.in_use.size(), static_cast<size_t>(kAnswer) - 1);
    for (const int64_t in_use : run.in_use) ASSERT_LE(in_use, bytes);
    EXPECT_LE(run.result.stats.kv_bytes_most, bytes);
    // An answer of the same policy without room for it would have to keep so many fewer from the beginning.
    ASSERT_TRUE(run.result.stats.solved);
    const int64_t kept = std::ssize(run.result.points.at(0).kept_per_head.at(0));
    EXPECT_GT(kept, 20);
    EXPECT_LE(text + kept + every - 1, bytes / row / layers);
  }
  // Where rows are held, none can be promised to fewer bytes than all take.
  const int64_t all = layers * (prompt + kAnswer) * row;
  EXPECT_EQ(engine().generate(request_of(3, "visionpulse", kAnswer)).stats.kv_bytes_most, all - layers * row);
  expect_says(message_of<Error>([&] {
                engine().generate(request_of(3, "fastv:every=2,kv=" + std::to_string(all - 1) + "B", kAnswer));
              }),
              {"fastv", std::to_string(all).c_str()});
}

// An answer's points are many: without a trace none is kept.
TEST(ReselectionMemory, PointsOfTheAnswerAreInTracesOnly) {
  Request request = request_of(1, "visionpulse", 7);
  EXPECT_EQ(engine().generate(request).points.size(), 4U * 7U);  // four layers, prefill and six tokens
  request.trace = false;
  EXPECT_EQ(engine().generate(request).points.size(), 4U);
  int64_t told = 0;
  engine().generate(std::span(&request, 1),
                    {.on_point = [&](size_t, const PointTrace& point) { told += point.generated > 0 ? 1 : 0; }});
  EXPECT_EQ(told, 4 * 6);
}

}  // namespace
}  // namespace espalier
