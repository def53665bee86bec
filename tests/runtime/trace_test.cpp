// SPDX-License-Identifier: Apache-2.0
// What callbacks are told of a run: the same facts as its recording replayed, and of the layout they stand on; and a
// run that nobody watches does nothing more, and gives the same.
#include "espalier/trace.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/generate.h"
#include "tests/runtime/golden_case.h"
#include "tests/runtime/scratch_folder.h"
#include "tests/support/tensors.h"
#include "tests/support/tiny_llava.h"

namespace espalier {
namespace {

using Json = nlohmann::json;
using Tokens = std::vector<int64_t>;

struct Watched {
  PromptTrace prompt;
  std::vector<PointTrace> points;
  Result result;
};

Request request_of(const Prompt& prompt, const std::string& policy) {
  Request request{.prompt = prompt, .policy = policy, .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = 3;
  request.options.greedy = true;
  return request;
}

std::vector<Watched> watch(const LoadedModel& model, const std::vector<Request>& requests) {
  std::vector<Watched> seen(requests.size());
  Callbacks callbacks;
  callbacks.on_prompt = [&](size_t i, const PromptTrace& prompt) { seen.at(i).prompt = prompt; };
  callbacks.on_point = [&](size_t i, const PointTrace& point) { seen.at(i).points.push_back(point); };
  std::vector<Result> results = generate(model, requests, callbacks);
  for (size_t i = 0; i < results.size(); ++i) seen[i].result = std::move(results[i]);
  return seen;
}

Json replayed(const LoadedModel& model, const Request& request) {
  const test::ScratchFolder folder;
  const auto at = [&](const char* name) { return folder.path() / name; };
  record(model, request, {.signals = at("s.safetensors"), .layout = at("l.json"), .only = {}}, {});
  replay(make_policy(request.policy), {.signals = at("s.safetensors"), .layout = at("l.json"), .out = at("out.json")});
  return Json::parse(test::read_file(at("out.json")));
}

void expect_near(const std::vector<float>& got, const std::vector<double>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 2e-5) << i;
}

// Everything about a point that its kept tokens decide, worked out from the point before.
void expect_consistent(const PromptTrace& prompt, const PointTrace& point, Tokens& alive) {
  Tokens stays = point.kept;
  for (const Tokens& head : point.kept_per_head) {
    Tokens both;
    std::ranges::set_union(stays, head, std::back_inserter(both));
    stays = both;
  }
  Tokens dropped;
  std::ranges::set_difference(alive, stays, std::back_inserter(dropped));
  EXPECT_EQ(point.dropped, dropped);
  Tokens per_image(prompt.pictures.size(), 0);
  for (const int64_t t : point.kept_per_head.empty() ? point.kept : point.kept_per_head.front())
    ++per_image[static_cast<size_t>(prompt.tokens[t].image)];
  EXPECT_EQ(point.tokens_per_image, per_image);
  ASSERT_EQ(point.position_id.size(), prompt.position_id.size());
  for (size_t part = 0; part < prompt.position_id.size(); ++part) {
    ASSERT_EQ(point.position_id[part].size(), point.source.size());
    for (size_t i = 0; i < point.source.size(); ++i)
      EXPECT_EQ(point.position_id[part][i], prompt.position_id[part][point.source[i]]);
  }
  if (!point.kept_per_head.empty()) return;
  Tokens competing;
  std::ranges::copy_if(point.source, std::back_inserter(competing), [&](int64_t t) {
    return prompt.tokens[t].kind == TokenTrace::Kind::kPatch || std::ranges::binary_search(point.kept, t);
  });
  EXPECT_EQ(competing, point.kept);
  alive = point.kept;
}

class TraceTest : public testing::TestWithParam<const char*> {};

TEST_P(TraceTest, TellsWhatTheRecordingReplayedDoes) {
  for (const char* family : {"llava15", "llava_next_vicuna", "qwen25vl"}) {
    SCOPED_TRACE(family);
    const LoadedModel& model = test::tiny_model(family);
    const Request request = request_of(test::in_context_prompt(2), GetParam());
    const Watched run = std::move(watch(model, {request})[0]);
    const Json points = replayed(model, request).at("points");
    ASSERT_EQ(run.points.size(), points.size());
    Tokens alive;
    const bool row_breaks_compete = make_policy(GetParam())->row_breaks_compete();
    for (size_t t = 0; t < run.prompt.tokens.size(); ++t)
      if (run.prompt.tokens[t].kind == TokenTrace::Kind::kPatch ||
          (row_breaks_compete && run.prompt.tokens[t].kind == TokenTrace::Kind::kRowBreak))
        alive.push_back(static_cast<int64_t>(t));
    for (size_t i = 0; i < points.size(); ++i) {
      SCOPED_TRACE(i);
      const PointTrace& point = run.points[i];
      EXPECT_EQ(points[i].at("site"), point.site);
      EXPECT_EQ(points[i].value("layer", -1), point.layer);
      if (point.kept_per_head.empty())
        EXPECT_EQ(points[i].at("kept").get<Tokens>(), point.kept);
      else
        EXPECT_EQ(points[i].at("kept").get<std::vector<Tokens>>(), point.kept_per_head);
      EXPECT_EQ(points[i].value("candidates", Tokens{}), point.candidates);
      expect_near(point.scores, points[i].value("scores", std::vector<double>{}));
      const auto notes = points[i].value("notes", std::map<std::string, std::vector<double>>{});
      ASSERT_EQ(point.notes.size(), notes.size());
      for (const auto& [name, values] : point.notes) expect_near(values, notes.at(name));
      expect_consistent(run.prompt, point, alive);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, TraceTest,
                         testing::Values("none", "random:keep_ratio=1/4", "fastv:keep_ratio=1/4", "catp:keep_ratio=2/9",
                                         "plphp", "atp:theta_r=0.3,theta_s=0.9", "pyramiddrop",
                                         "divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

TEST(Trace, ThePromptIsItsLayout) {
  for (const char* family : {"llava15", "llava_next_mistral", "qwen25vl"}) {
    SCOPED_TRACE(family);
    const LoadedModel& model = test::tiny_model(family);
    const Prompt prompt = test::in_context_prompt(2);
    const PromptTrace trace = watch(model, {request_of(prompt, "none")})[0].prompt;
    const PackedPrompt packed = pack_prompt(model, prompt, 3);
    const PromptLayout& layout = *packed.layout;
    EXPECT_EQ(trace.query_example, layout.query_example);
    ASSERT_EQ(std::ssize(trace.tokens), layout.num_tokens);
    ASSERT_EQ(trace.pictures.size(), layout.images.size());
    for (size_t i = 0; i < layout.images.size(); ++i) {
      EXPECT_EQ(trace.pictures[i].rows, layout.images[i].grid.rows);
      EXPECT_EQ(trace.pictures[i].tile_columns, layout.images[i].tiling ? layout.images[i].tiling->cols : 0);
    }
    for (int64_t t = 0; t < layout.num_tokens; ++t) {
      const TokenTrace& token = trace.tokens[t];
      EXPECT_EQ(static_cast<int64_t>(token.kind), layout.kind[t].item<int64_t>());
      EXPECT_EQ(token.image, layout.image[t].item<int64_t>());
      EXPECT_EQ(token.crop, layout.crop[t].item<int64_t>());
      EXPECT_EQ(token.example, layout.example[t].item<int64_t>());
      EXPECT_EQ(token.row, layout.grid_row[t].item<int64_t>());
      EXPECT_EQ(token.column, layout.grid_col[t].item<int64_t>());
      EXPECT_EQ(token.box.has_value(), token.kind == TokenTrace::Kind::kPatch);
      for (size_t part = 0; part < trace.position_id.size(); ++part)
        EXPECT_EQ(trace.position_id[part][t],
                  (trace.position_id.size() == 1 ? layout.position_id : layout.position_id[part])[t].item<int64_t>());
    }
  }
}

// Merged tokens: counted for their image, with the place they stand at or none.
TEST(Trace, OfMergedTokens) {
  const Watched run = std::move(
      watch(test::tiny_llava(), {request_of(test::in_context_prompt(1), "visionzip:num_kept=6,contextual=2")})[0]);
  ASSERT_EQ(run.points.size(), 1U);
  const PointTrace& point = run.points[0];
  EXPECT_EQ(point.tokens_per_image, (Tokens{6, 6}));
  EXPECT_EQ(point.kept.size(), 6U);  // three of each image; the class row and the averages are new
  EXPECT_EQ(std::ranges::count(point.source, -1), 2);
  EXPECT_EQ(point.source.size(), point.position_id[0].size());
  EXPECT_TRUE(std::ranges::is_sorted(point.dropped));
}

TEST(Trace, CompactPositionsAreThoseOfTheShorterSequence) {
  const Watched run = std::move(
      watch(test::tiny_llava(), {request_of(test::in_context_prompt(1), "fastv:keep_ratio=1/4,positions=compact")})[0]);
  Tokens counting(run.points.at(0).source.size());
  std::iota(counting.begin(), counting.end(), 0);
  EXPECT_EQ(run.points[0].position_id[0], counting);
}

TEST(Trace, EachRequestOfABatchHasItsOwn) {
  const std::vector<Request> requests = {request_of(test::in_context_prompt(2), "catp:keep_ratio=2/9"),
                                         request_of(test::in_context_prompt(1), "fastv:keep_ratio=1/4"),
                                         request_of(test::in_context_prompt(0), "none")};
  const std::vector<Watched> together = watch(test::tiny_llava(), requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    const Watched alone = std::move(watch(test::tiny_llava(), {requests[i]})[0]);
    EXPECT_EQ(together[i].prompt.tokens.size(), alone.prompt.tokens.size());
    ASSERT_EQ(together[i].points.size(), alone.points.size());
    for (size_t p = 0; p < alone.points.size(); ++p) {
      EXPECT_EQ(together[i].points[p].kept, alone.points[p].kept);
      EXPECT_EQ(together[i].points[p].position_id, alone.points[p].position_id);
    }
  }
}

// Counts what is asked of it; its verdict has scores and a note, which nobody but a trace reads.
class Counting final : public PruningPolicy {
 public:
  std::string spec() const override { return "counting"; }
  std::vector<Step> steps(const ModelFacts&, const PromptLayout&) const override {
    std::vector<Step> steps;
    for (const int layer : {2, 4})
      steps.push_back({.at = {Site::kBeforeLayer, layer},
                       .needs = [this, layer](const TokenLayout&) -> std::vector<Signal> {
                         ++asked;
                         return {AttentionProbe{.layer = layer - 1}};
                       },
                       .decide = [this](const TokenLayout& layout,
                                        std::span<const at::Tensor> signals) { return decide(layout, signals); }});
    return steps;
  }
  Verdict decide(const TokenLayout& layout, std::span<const at::Tensor> signals) const {
    ++decided;
    const int64_t m = layout.num_image_tokens();
    Verdict verdict{.kept = std::get<0>(std::get<1>(signals[0].topk(m / 2)).sort())};
    verdict.scores = signals[0];
    verdict.notes = {{"largest", signals[0].max().unsqueeze(0)}};
    return verdict;
  }
  mutable int asked = 0, decided = 0;
};

TEST(Trace, WithoutOneNothingMoreIsDoneAndTheResultIsTheSame) {
  const auto run = [](const Callbacks& callbacks, bool trace) {
    const auto policy = std::make_shared<Counting>();
    Request request = request_of(test::in_context_prompt(2), "none");
    request.custom = policy;
    request.trace = trace;
    Result result = generate(test::tiny_llava(), request, callbacks);
    EXPECT_EQ(policy->asked, 2);
    EXPECT_EQ(policy->decided, 2);
    return result;
  };
  Callbacks watching;
  std::vector<PointTrace> seen;
  watching.on_prompt = [](size_t, const PromptTrace&) {};
  watching.on_point = [&](size_t, const PointTrace& point) { seen.push_back(point); };
  const Result off = run({}, false), on = run(watching, false), kept = run({}, true);
  for (const Result* other : {&on, &kept}) {
    EXPECT_EQ(other->token_ids, off.token_ids);
    EXPECT_EQ(other->kept, off.kept);
    EXPECT_EQ(other->stats.tokens_per_layer, off.stats.tokens_per_layer);
    EXPECT_EQ(other->stats.probe_flops, off.stats.probe_flops);
    EXPECT_EQ(other->stats.kernels, off.stats.kernels);
  }
  ASSERT_EQ(seen.size(), 2U);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(off.points.at(i).kept, seen[i].kept);
    for (const Result* bare : {&off, &on}) {  // the result holds what was asked of the result
      EXPECT_TRUE(bare->points[i].scores.empty() && bare->points[i].notes.empty() && bare->points[i].source.empty() &&
                  bare->points[i].position_id.empty() && bare->points[i].dropped.empty());
    }
    EXPECT_EQ(kept.points.at(i).scores, seen[i].scores);
    EXPECT_EQ(kept.points[i].notes, seen[i].notes);
    EXPECT_EQ(kept.points[i].source, seen[i].source);
    EXPECT_EQ(kept.points[i].dropped, seen[i].dropped);
    EXPECT_EQ(seen[i].notes.at(0).first, "largest");
    EXPECT_EQ(seen[i].notes[0].second.at(0), *std::ranges::max_element(seen[i].scores));
  }
}

}  // namespace
}  // namespace espalier
