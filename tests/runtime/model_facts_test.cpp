// SPDX-License-Identifier: Apache-2.0
// What an engine says of its model: facts, what its log gets, and what the folder sets of policies.
#include "espalier/model_facts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/policies/per_image.h"
#include "espalier/policies/table.h"
#include "espalier/session.h"
#include "layout/layout_json.h"
#include "recording/record.h"
#include "recording/replay.h"
#include "runtime/engine_impl.h"
#include "tests/runtime/derived_checkpoint.h"

namespace espalier {
namespace {

using nlohmann::json;
using test::DerivedCheckpoint;
using test::expect_says;
using test::message_of;

Request asks(const std::string& policy) {
  Request request{.prompt = test::in_context_prompt(3), .policy = policy};
  request.options.max_new_tokens = 1;
  request.options.greedy = true;
  request.trace = true;
  return request;
}

// A folder with defaults of its own; as it comes, of catp: k = 4.
struct WithDefaults : DerivedCheckpoint {
  explicit WithDefaults(const json& defaults = {{"catp", {{"k", 4}}}}) {
    write();
    std::ofstream(path() / "policy_defaults.json") << defaults.dump();
  }
};

TEST(ModelFacts, NameTheModelAndHowItIsComputed) {
  const Engine engine = Engine::load(test::golden_folder() / "llava15" / "", {.dtype = ComputeDtype::kBFloat16});
  const ModelFacts& facts = engine.facts();
  EXPECT_EQ(facts.name, "llava15");
  EXPECT_EQ(facts.family, "LLaVA-1.5");
  EXPECT_EQ(facts.dtype, "bfloat16");
  EXPECT_EQ(facts.num_layers, 8);
  EXPECT_EQ(facts.hidden_size, 128);
  EXPECT_TRUE(facts.policy_defaults.empty());
  EXPECT_EQ(Engine::load(test::golden_folder() / "qwen2vl").facts().family, "Qwen2-VL");
  EXPECT_EQ(Engine::load(test::golden_folder() / "llava15").facts().dtype, "float16");
}

// What a caller asks the table: what is refused says why, and what is not refused runs.
TEST(ModelFacts, SayWhichPoliciesTheModelCanRun) {
  const Engine engine = Engine::load(test::golden_folder() / "qwen2vl");
  std::vector<std::string> refused;
  for (const PolicyEntry& entry : policy_table())
    if (const std::string why = entry.refusal(engine.facts()); !why.empty()) refused.emplace_back(entry.name);
  EXPECT_TRUE(std::ranges::count(refused, "prumerge")) << "needs a class token, and this tower has none";
  EXPECT_FALSE(std::ranges::count(refused, "divprune"));
}

TEST(EngineLog, SaysHowTheModelRunsAtItsLowestLevel) {
  std::vector<std::pair<LogLevel, std::string>> said;
  const LogSink sink = [&](LogLevel level, std::string_view message) { said.emplace_back(level, message); };
  const WithDefaults checkpoint;
  Engine::load(checkpoint.path(), {.log_level = LogLevel::kVerbose, .log = sink});
  std::string all;
  for (const auto& [level, message] : said) {
    EXPECT_EQ(level, LogLevel::kVerbose);
    EXPECT_EQ(message.find('\n'), std::string::npos);
    all += message + "\n";
  }
  expect_says(all, {"LLaVA-1.5, 8 decoder layers of width 128, float16", "chat_template.json", "catp takes k=4",
                    "kernels: ", " threads", "MiB of weights read", "KiB of KV cache per token"});
  said.clear();
  Engine::load(checkpoint.path(), {.log = sink});
  EXPECT_TRUE(said.empty());  // nothing is wrong with it
}

// ---- policy_defaults.json ----

TEST(PolicyDefaults, AreTakenWhereTheSpecSaysNothing) {
  const WithDefaults checkpoint;
  const Engine engine = Engine::load(checkpoint.path());
  EXPECT_EQ(engine.facts().policy_defaults, (std::vector<PolicyDefault>{{"catp", "k", "4"}}));
  const std::vector<std::pair<std::string, std::string>> specs = {
      {"catp:keep_ratio=1/3", "catp:keep_ratio=1/3,k=4"},
      {"catp:keep_ratio=1/3,k=3", "catp:keep_ratio=1/3,k=3"},
      {"catp+:keep_ratio=1/3", "catp+:keep_ratio=1/3"},
      {"uniform:keep_ratio=1/2 + catp:keep_ratio=1/3", "uniform:keep_ratio=1/2 + catp:keep_ratio=1/3,k=4"}};
  for (const auto& [asked, ran] : specs) EXPECT_EQ(engine.generate(asks(asked)).policy, ran);
  const Result set = engine.generate(asks("catp:keep_ratio=1/3")),
               written = engine.generate(asks("catp:keep_ratio=1/3,k=4")),
               published = engine.generate(asks("catp:keep_ratio=1/3,k=2"));
  EXPECT_EQ(set.kept, written.kept);
  EXPECT_EQ(set.points.back().layer, 5);  // the query is cut before k + 1
  EXPECT_EQ(published.points.back().layer, 3);
  EXPECT_EQ(Engine::load(test::golden_folder() / "llava15").generate(asks("catp:keep_ratio=1/3")).kept, published.kept);
  Session session(engine, {.policy = "catp:keep_ratio=1/3", .generation = {.max_new_tokens = 1, .greedy = true}});
  EXPECT_EQ(session.ask(std::vector<Part>{ImagePart{.image = test::picture(56, 56, 1)}, TextPart{"?"}}).policy,
            "catp:keep_ratio=1/3,k=4");
}

// Of a target each amount that is tried takes them.
TEST(PolicyDefaults, AreTakenBySolvedAmounts) {
  const WithDefaults checkpoint;
  const Engine engine = Engine::load(checkpoint.path());
  const int64_t whole = engine.generate(asks("none")).stats.kv_bytes;
  const Result solved = engine.generate(asks("catp:kv=" + std::to_string(whole * 9 / 10) + "B"));
  EXPECT_TRUE(solved.policy.starts_with("catp:keep_ratio=") && solved.policy.ends_with(",k=4")) << solved.policy;
  EXPECT_EQ(solved.kept, engine.generate(asks(solved.policy)).kept);
}

TEST(PolicyDefaults, GoAlongWithARecording) {
  const WithDefaults checkpoint;
  const Engine engine = Engine::load(checkpoint.path(), {.dtype = ComputeDtype::kFloat32});
  const test::ScratchFolder folder;
  const std::filesystem::path signals = folder.path() / "s.safetensors", layout = folder.path() / "l.json",
                              out = folder.path() / "kept.json";
  record(engine.impl().model, asks("catp:keep_ratio=1/3"), {.signals = signals, .layout = layout, .only = {}}, {});
  EXPECT_EQ(read_layout(layout).model.policy_defaults, engine.facts().policy_defaults);
  replay(make_policy("catp:keep_ratio=1/3"), {.signals = signals, .layout = layout, .out = out});
  const json replayed = json::parse(test::read_file(out));
  EXPECT_EQ(replayed["policy"], "catp:keep_ratio=1/3,k=4");
  EXPECT_EQ(replayed["kept"], engine.generate(asks("catp:keep_ratio=1/3")).kept);
}

TEST(PolicyDefaults, RefuseWhatCannotBeLeftOpen) {
  const std::vector<std::pair<json, std::vector<const char*>>> cases = {
      {{{"catb", {{"k", 3}}}}, {"policy_defaults.json", "\"catb\"", "the name of a policy"}},
      {{{"catp", {{"kay", 3}}}}, {"\"catp.kay\"", "a spec may leave open"}},
      {{{"catp", {{"lambda1", "0.5"}}}}, {"\"catp.lambda1\"", "a spec may leave open"}},
      {{{"catp", {{"keep_ratio", "1/2"}}}}, {"\"catp.keep_ratio\"", "not an amount"}},
      {{{"catp", {{"kv", "64MB"}}}}, {"\"catp.kv\"", "not an amount"}},
      {{{"catp", {{"k", 2.5}}}}, {"\"catp.k\"", "text or an integer", "2.5"}},
      {{{"catp", 3}}, {"\"catp\"", "expected an object"}},
      {json::array(), {"policy_defaults.json", "expected an object"}}};
  for (const auto& [defaults, parts] : cases) {
    const WithDefaults checkpoint(defaults);
    const std::string message = message_of<Error>([&] { Engine::load(checkpoint.path()); });
    for (const char* part : parts) expect_says(message, {part});
  }
  const WithDefaults checkpoint(json{{"catp", {{"k", "much"}}}});
  const Engine engine = Engine::load(checkpoint.path());
  expect_says(message_of<Error>([&] { engine.generate(asks("catp:keep_ratio=1/3")); }),
              {"policy_defaults.json: catp: k=much is not an integer"});
  EXPECT_EQ(engine.generate(asks("divprune:keep_ratio=1/3")).policy, "divprune:keep_ratio=1/3");
}

}  // namespace
}  // namespace espalier
