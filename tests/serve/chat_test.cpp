// SPDX-License-Identifier: Apache-2.0
// What is asked over HTTP is answered as `espalier generate` answers it: every endpoint, every field, whole and in
// streams.
#include <cmath>

#include "tests/serve/running_server.h"
#include "tests/support/policy_plugin.h"

namespace espalier::test {
namespace {

const Json kTurns = Json::array(
    {user(Json::array({image_part(data_uri("rgb.png")), text_part("What is this?")})), assistant("a ramp"),
     user(Json::array({image_part(data_uri("420.jpg")), text_part("And this?")})), assistant("a picture"),
     user(Json::array({text_part("Which is larger,"), image_part(data_uri("gray.png")), text_part("or both?")}))});
const std::vector<std::string> kFiles = {"rgb.png", "420.jpg", "gray.png"};

Json few_shot(const Json& more = Json::object()) {
  Json body = ask("", more);
  body["messages"] = kTurns;
  return body;
}

std::string content_of(const Reply& reply, size_t choice = 0) {
  return reply.json()["choices"][choice]["message"].value("content", "nothing");
}

TEST(Chat, EqualsGenerateUnderEveryPolicy) {
  for (const char* policy :
       {"none", "catp:keep_ratio=1/3,k=3", "divprune:keep_ratio=2/9", "fastv:keep_ratio=1/2,layer=2",
        "visionzip:num_kept=8", "divprune:keep_ratio=1/2 + fastv:keep_ratio=1/4,layer=3"}) {
    SCOPED_TRACE(policy);
    const Json expected = generated(with_files(kTurns, kFiles), {"--greedy", "--policy", policy});
    const Reply reply = shared_server().chat(few_shot({{"pruning", policy}, {"stats", true}}));
    ASSERT_EQ(reply.status, 200) << reply.body;
    const Json json = reply.json();
    EXPECT_EQ(content_of(reply), expected["text"]);
    EXPECT_EQ(json["object"], "chat.completion");
    EXPECT_EQ(json["model"], "llava15");
    EXPECT_EQ(json["choices"][0]["finish_reason"], "length");
    EXPECT_EQ(json["choices"][0]["message"]["role"], "assistant");
    const Json& usage = json["usage"];
    EXPECT_EQ(usage["prompt_tokens"], expected["stats"]["prompt_tokens"]);
    EXPECT_EQ(usage["completion_tokens"], 12);
    EXPECT_EQ(usage["total_tokens"], usage["prompt_tokens"].get<int>() + 12);
    const Json& stats = json["choices"][0]["espalier"];
    EXPECT_EQ(stats["tokens_per_layer"], expected["stats"]["tokens_per_layer"]);
    EXPECT_EQ(stats["policy"], policy);
    EXPECT_GT(stats["time_ms"]["prefill"].get<double>(), 0);
    EXPECT_EQ(usage["prompt_tokens_details"]["image_tokens"], 48);
    const auto& layers = expected["stats"]["image_tokens_per_layer"];
    int left = 0;
    for (const int tokens : layers.back()) left += tokens;
    EXPECT_EQ(usage["prompt_tokens_details"]["pruned_tokens"], 48 - left);
    EXPECT_TRUE(reply.headers.contains("x-espalier-prefix"));
  }
}

// Bytes in place of an amount: the same amount, and what was made of it in the answer. A time needs what calibrate
// measures, and says so.
TEST(Chat, TargetsAreSolved) {
  const Json whole = generated(with_files(kTurns, kFiles), {"--greedy"})["stats"];
  const std::string policy = "divprune:kv=" + std::to_string(whole["kv_bytes"].get<int64_t>()) + "B";
  const Json expected = generated(with_files(kTurns, kFiles), {"--greedy", "--policy", policy});
  const Reply reply = shared_server().chat(few_shot({{"pruning", policy}, {"stats", true}}));
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json stats = reply.json()["choices"][0]["espalier"];
  EXPECT_EQ(content_of(reply), expected["text"]);
  EXPECT_EQ(stats["tokens_per_layer"], expected["stats"]["tokens_per_layer"]);
  EXPECT_EQ(stats["solved"]["policy"], expected["stats"]["solved"]["policy"]);
  EXPECT_EQ(stats["solved"]["kv_bytes"], expected["stats"]["solved"]["kv_bytes"]);
  EXPECT_LT(stats["kv_bytes"], whole["kv_bytes"]);
  const Reply refused = shared_server().chat(few_shot({{"pruning", "divprune:ttft=250ms"}}));
  EXPECT_EQ(refused.status, 400);
  EXPECT_NE(refused.body.find("espalier calibrate"), std::string::npos) << refused.body;
}

// Policies of a plugin, which any request may name, alone, in sequence with others, and for one picture.
TEST(Chat, PoliciesOfAPlugin) {
  const Arguments plugin = {"--policy-plugin", policy_plugin().string()};
  const RunningServer server(plugin);
  for (const char* policy : {"keep_centre:share=1/2", "keep_centre:share=1/2 + fastv:num_kept=3,layer=2"}) {
    SCOPED_TRACE(policy);
    const Json expected = generated(with_files(kTurns, kFiles), Arguments{"--greedy", "--policy", policy} + plugin);
    const Reply reply = server.chat(few_shot({{"pruning", policy}, {"stats", true}}));
    ASSERT_EQ(reply.status, 200) << reply.body;
    EXPECT_EQ(content_of(reply), expected["text"]);
    EXPECT_EQ(reply.json()["choices"][0]["espalier"]["tokens_per_layer"], expected["stats"]["tokens_per_layer"]);
  }
  const Reply unknown = shared_server().chat(few_shot({{"pruning", "keep_centre:share=1/2"}}));
  EXPECT_EQ(unknown.status, 400);
}

TEST(Chat, SamplesAsGenerateDoes) {
  const Json expected = generated(with_files(kTurns, kFiles), {"--temperature", "1.5", "--top-k", "40", "--top-p",
                                                               "0.9", "--repetition-penalty", "1.2", "--seed", "7"});
  const Reply reply = shared_server().chat(
      few_shot({{"temperature", 1.5}, {"top_k", 40}, {"top_p", 0.9}, {"repetition_penalty", 1.2}, {"seed", 7}}));
  EXPECT_EQ(content_of(reply), expected["text"]);
}

TEST(Chat, StreamsTheSameText) {
  const Reply whole = shared_server().chat(few_shot());
  const Reply stream =
      shared_server().chat(few_shot({{"stream", true}, {"stream_options", {{"include_usage", true}}}}));
  ASSERT_EQ(stream.status, 200);
  EXPECT_EQ(stream.headers.at("content-type"), "text/event-stream");
  const std::vector<Json> events = events_of(stream.body);
  ASSERT_GE(events.size(), 3U);
  EXPECT_EQ(events.front()["choices"][0]["delta"]["role"], "assistant");
  std::string text;
  for (const Json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events[0]["id"]);
    for (const Json& choice : event["choices"]) text += choice["delta"].value("content", "");
  }
  EXPECT_EQ(text, content_of(whole));
  EXPECT_EQ(events[events.size() - 2]["choices"][0]["finish_reason"], "length");
  EXPECT_TRUE(events.back()["choices"].empty());
  EXPECT_EQ(events.back()["usage"]["completion_tokens"], 12);
  EXPECT_TRUE(events[0]["usage"].is_null());
}

TEST(Chat, SeveralSamplesHaveSeedsBehindEachOther) {
  const Json sampled = {{"temperature", 2.0}, {"seed", 40}};
  Json three = sampled;
  three["n"] = 3;
  const Reply together = shared_server().chat(few_shot(three));
  ASSERT_EQ(together.json()["choices"].size(), 3U);
  EXPECT_EQ(together.json()["usage"]["completion_tokens"], 36);
  for (int i = 0; i < 3; ++i) {
    Json one = sampled;
    one["seed"] = 40 + i;
    EXPECT_EQ(content_of(together, static_cast<size_t>(i)), content_of(shared_server().chat(few_shot(one))));
    EXPECT_EQ(together.json()["choices"][static_cast<size_t>(i)]["index"], i);
  }
  three["stream"] = true;
  std::vector<std::string> texts(3);
  int ends = 0;
  for (const Json& event : events_of(shared_server().chat(few_shot(three)).body))
    for (const Json& choice : event["choices"]) {
      texts[choice["index"].get<size_t>()] += choice["delta"].value("content", "");
      ends += !choice["finish_reason"].is_null();
    }
  EXPECT_EQ(ends, 3);
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(texts[i], content_of(together, i));
}

TEST(Chat, Logprobs) {
  const Json asked = {{"logprobs", true}, {"top_logprobs", 4}};
  const Json choice = shared_server().chat(few_shot(asked)).json()["choices"][0];
  const Json& content = choice["logprobs"]["content"];
  ASSERT_EQ(content.size(), 12U);
  for (const Json& token : content) {
    ASSERT_EQ(token["top_logprobs"].size(), 4U);
    EXPECT_EQ(token["token"], token["top_logprobs"][0]["token"]);  // greedy
    EXPECT_EQ(token["logprob"], token["top_logprobs"][0]["logprob"]);
    EXPECT_LT(token["logprob"].get<double>(), 0);
    EXPECT_GE(token["top_logprobs"][0]["logprob"], token["top_logprobs"][1]["logprob"]);
  }
  Json streamed = asked;
  streamed["stream"] = true;
  Json told = Json::array();
  for (const Json& event : events_of(shared_server().chat(few_shot(streamed)).body))
    if (const Json& logprobs = event["choices"][0]["logprobs"]; !logprobs.is_null())
      for (const Json& token : logprobs["content"]) told.push_back(token);
  ASSERT_EQ(told.size(), content.size());
  for (size_t i = 0; i < told.size(); ++i) {  // the second time after a cached beginning: equal within rounding
    EXPECT_EQ(told[i]["bytes"], content[i]["bytes"]);
    EXPECT_NEAR(told[i]["logprob"].get<double>(), content[i]["logprob"].get<double>(), 1e-4);
    EXPECT_EQ(told[i]["top_logprobs"].size(), 4U);
  }
  EXPECT_TRUE(shared_server().chat(few_shot()).json()["choices"][0]["logprobs"].is_null());
}

TEST(Chat, EndsBeforeAStopString) {
  const std::string text = content_of(shared_server().chat(few_shot()));
  ASSERT_GT(text.size(), 6U);
  const std::string stop = text.substr(text.size() / 2, 2);
  for (const Json& stops : {Json(stop), Json::array({"never in it", stop})}) {
    const Reply reply = shared_server().chat(few_shot({{"stop", stops}}));
    EXPECT_EQ(content_of(reply), text.substr(0, text.find(stop)));
    EXPECT_EQ(reply.json()["choices"][0]["finish_reason"], "stop");
  }
}

TEST(Chat, TokensAndTheirNames) {
  const Json plain = ask("Hello");
  Json newer = plain;
  newer.erase("max_tokens");
  newer["max_completion_tokens"] = 12;
  EXPECT_EQ(content_of(shared_server().chat(newer)), content_of(shared_server().chat(plain)));
  EXPECT_EQ(shared_server().chat(ask("Hello", {{"max_tokens", 0}})).json()["usage"]["completion_tokens"], 0);
  Json turns = plain;
  turns["messages"] = Json::array({{{"role", "developer"}, {"content", "Be brief."}}, user("Hello")});
  Json older = plain;
  older["messages"] =
      Json::array({{{"role", "system"}, {"content", "Be brief."}}, user(Json::array({text_part("Hello")}))});
  EXPECT_EQ(content_of(shared_server().chat(turns)), content_of(shared_server().chat(older)));
}

TEST(Completions, EqualGenerateOnTheSameText) {
  const Json expected = json_of({"generate", "--json", "--dtype", "f32", "--model", kModel.string(), "--raw-prompt",
                                 "USER: <image>\nName it ASSISTANT:", "--image", image_file("rgb.png"), "--greedy",
                                 "--ignore-eos", "--max-new-tokens", "12"});
  const Json body = {{"prompt", "USER: <image>\nName it ASSISTANT:"},
                     {"images", Json::array({image_part(data_uri("rgb.png"))})},
                     {"temperature", 0},
                     {"max_tokens", 12},
                     {"ignore_eos", true},
                     {"logprobs", 2}};
  const Json json = post(shared_server().port(), kCompletions, body).json();
  EXPECT_EQ(json["object"], "text_completion");
  EXPECT_EQ(json["choices"][0]["text"], expected["text"]);
  EXPECT_EQ(json["choices"][0]["logprobs"]["tokens"].size(), 12U);
  const size_t alternatives = json["choices"][0]["logprobs"]["top_logprobs"][0].size();
  EXPECT_TRUE(alternatives == 2 || alternatives == 1) << "by their text, which two may share";
  Json streamed = body;
  streamed["stream"] = true;
  std::string text;
  for (const Json& event : events_of(post(shared_server().port(), kCompletions, streamed).body))
    text += event["choices"][0].value("text", "");
  EXPECT_EQ(text, expected["text"]);
}

TEST(Server, TellsModelsTokensHealthAndMetrics) {
  const uint16_t port = shared_server().port();
  const Json models = get(port, "/v1/models").json();
  EXPECT_EQ(models["data"][0]["id"], "llava15");
  EXPECT_EQ(models["data"][0]["max_model_len"], 4096);
  EXPECT_EQ(get(port, "/health").status, 200);
  EXPECT_EQ(get(port, "/ready").status, 200);
  const Json tokens = post(port, "/tokenize", Json{{"prompt", "a quick fox"}}).json();
  const TemporaryFolder folder;
  const auto cases = folder.write("cases.json", Json::array({{{"text", "a quick fox"}}}).dump());
  output_of({"tokenize", "--model", kModel.string(), "--in", cases.string(), "--out", (folder / "out.json").string()});
  EXPECT_EQ(tokens["tokens"], read_json(folder / "out.json")[0]["ids"]);
  EXPECT_EQ(tokens["count"], tokens["tokens"].size());
  const Json turns = post(port, "/tokenize", Json{{"messages", kTurns}}).json();
  EXPECT_EQ(turns["tokens_per_image"], (Json{16, 16, 16}));
  EXPECT_EQ(turns["count"], shared_server().chat(few_shot()).json()["usage"]["prompt_tokens"]);
  const std::string metrics = get(port, "/metrics").body;
  for (const char* name :
       {"espalier_queue 0", "espalier_running 0", "espalier_kv_bytes_free", "espalier_encode_seconds_bucket",
        "espalier_time_to_first_token_seconds_count{policy=\"none\"}",
        "espalier_image_tokens_pruned_total{policy=\"none\"} 0", "espalier_prefix_cache_hits_total"})
    EXPECT_NE(metrics.find(name), std::string::npos) << name;
}

// The beginning is known the second time, and the answer is the same.
TEST(Chat, BeginningsAreComputedOnce) {
  const RunningServer server;
  const Json body = few_shot({{"pruning", "divprune:keep_ratio=1/2"}});
  const Reply first = server.chat(body);
  EXPECT_EQ(first.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  const Reply second = server.chat(body);
  EXPECT_GT(second.json()["usage"]["prompt_tokens_details"]["cached_tokens"], 30);
  EXPECT_EQ(content_of(first), content_of(second));
  EXPECT_EQ(first.headers.at("x-espalier-prefix"), second.headers.at("x-espalier-prefix"));
  EXPECT_EQ(server.metric("espalier_prefix_cache_hits_total"), 1);
  Json other = body;  // another question behind the same first turn
  other["messages"].push_back(assistant("both"));
  other["messages"].push_back(user("Why?"));
  EXPECT_EQ(server.chat(other).headers.at("x-espalier-prefix"), first.headers.at("x-espalier-prefix"));
  Json elsewhere = body;
  elsewhere["messages"][0]["content"][1]["text"] = "Who is this?";
  EXPECT_NE(server.chat(elsewhere).headers.at("x-espalier-prefix"), first.headers.at("x-espalier-prefix"));
  EXPECT_GT(*server.metric("espalier_image_cache_hits_total"), 0);
}

TEST(Chat, UsersShareNothingWhenIsolated) {
  const RunningServer server({"--isolate-users"});
  Json body = few_shot({{"user", "ann"}});
  body["messages"][0]["content"][0]["uuid"] = "first";
  server.chat(body);
  EXPECT_GT(server.chat(body).json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  body["user"] = "bob";
  EXPECT_EQ(server.chat(body).json()["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
  Json named = ask(Json::array({{{"type", "image_url"}, {"uuid", "first"}}, text_part("?")}), {{"user", "ann"}});
  EXPECT_EQ(server.chat(named).status, 200);
  named["user"] = "eve";
  expect_refused(server.chat(named), 400, "unknown_uuid");
}

}  // namespace
}  // namespace espalier::test
