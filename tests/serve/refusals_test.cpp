// SPDX-License-Identifier: Apache-2.0
// What is refused, with which status, code and field, and that nothing of an answer has gone out before.
#include "serve/server.h"
#include "tests/serve/running_server.h"

namespace espalier::test {
namespace {

uint16_t port() {
  return shared_server().port();
}

TEST(Refused, FieldsByTheirNames) {
  struct Case {
    Json more;
    const char* code;
    const char* param;
  };
  const std::vector<Case> cases = {
      {{{"temprature", 1}}, "unknown_field", "temprature"},
      {{{"temperature", "hot"}}, "invalid_value", "temperature"},
      {{{"temperature", -1}}, "invalid_value", "temperature"},
      {{{"top_p", 0}}, "invalid_value", "top_p"},
      {{{"top_p", 1.5}}, "invalid_value", "top_p"},
      {{{"top_k", -2}}, "invalid_value", "top_k"},
      {{{"seed", 1.5}}, "invalid_value", "seed"},
      {{{"seed", 18446744073709551615ULL}}, "invalid_value", "seed"},
      {{{"max_tokens", -1}}, "invalid_value", "max_tokens"},
      {{{"max_tokens", "12"}}, "invalid_value", "max_tokens"},
      {{{"n", 0}}, "invalid_value", "n"},
      {{{"n", 17}}, "invalid_value", "n"},
      {{{"stop", ""}}, "invalid_value", "stop"},
      {{{"stop", {1}}}, "invalid_value", "stop"},
      {{{"stop", std::string(300, 'x')}}, "invalid_value", "stop"},
      {{{"stream", 1}}, "invalid_value", "stream"},
      {{{"stream_options", {{"include_usage", true}}}}, "invalid_value", "stream_options"},
      {{{"stream", true}, {"stream_options", {{"include", true}}}}, "unknown_field", "stream_options.include"},
      {{{"top_logprobs", 3}}, "invalid_value", "top_logprobs"},
      {{{"logprobs", true}, {"top_logprobs", 21}}, "invalid_value", "top_logprobs"},
      {{{"repetition_penalty", 0}}, "invalid_value", "repetition_penalty"},
      {{{"presence_penalty", 0.5}}, "unsupported_value", "presence_penalty"},
      {{{"tools", {{{"type", "function"}}}}}, "unsupported_value", "tools"},
      {{{"pruning", "magic"}}, "invalid_pruning", "pruning"},
      {{{"pruning", "divprune"}}, "invalid_pruning", "pruning"},
      {{{"pruning", "fastv:keep_ratio=2"}}, "invalid_pruning", "pruning"},
      {{{"pruning", "keepmask:file=/etc/passwd"}}, "invalid_pruning", "pruning"},
      {{{"pruning", "fitprune:recipe=/etc/passwd"}}, "invalid_pruning", "pruning"},
      {{{"pruning", 3}}, "invalid_value", "pruning"},
      {{{"model", "gpt-4"}}, "model_not_found", "model"},
      {{{"messages", Json::array()}}, "invalid_value", "messages"},
      {{{"messages", "Hello"}}, "invalid_value", "messages"},
      {{{"messages", {{{"role", "user"}}}}}, "missing_field", "messages[0].content"},
      {{{"messages", {{{"role", "tool"}, {"content", "x"}}}}}, "invalid_value", "messages[0].role"},
      {{{"messages", {user("a"), assistant("b")}}}, "invalid_value", "messages"},
      {{{"messages", {{{"role", "user"}, {"content", "a"}, {"name", "b"}}}}}, "unknown_field", "messages[0].name"},
      {{{"messages", {user({{{"type", "audio"}}})}}}, "invalid_value", "messages[0].content[0].type"},
      {{{"messages", {user({{{"type", "text"}, {"text", 1}}})}}}, "invalid_value", "messages[0].content[0].text"},
      {{{"messages", {user({{{"type", "image_url"}}})}}}, "missing_field", "messages[0].content[0].image_url"},
      {{{"messages", {user("see <image>")}}}, "invalid_request", nullptr},
      {{{"max_tokens", 5000}}, "invalid_request", nullptr},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.more.dump().substr(0, 100));
    for (const bool streams : {false, true}) {
      if (c.more.contains("stream") || c.more.contains("stream_options")) break;
      Json body = ask("Hello", c.more);
      if (streams) body["stream"] = true;
      const Reply reply = shared_server().chat(body);
      expect_refused(reply, std::string_view(c.code) == "model_not_found" ? 404 : 400, c.code, c.param ? c.param : "");
      EXPECT_EQ(reply.headers.at("content-type"), "application/json");
    }
    if (c.more.contains("stream") || c.more.contains("stream_options"))
      expect_refused(shared_server().chat(ask("Hello", c.more)), 400, c.code, c.param);
  }
}

TEST(Refused, NeutralValuesOfOtherFieldsAreTaken) {
  const Json neutral = {{"presence_penalty", 0},
                        {"frequency_penalty", 0.0},
                        {"logit_bias", Json::object()},
                        {"response_format", {{"type", "text"}}},
                        {"tools", Json::array()},
                        {"user", "me"},
                        {"stop", nullptr},
                        {"n", 1},
                        {"model", "llava15"},
                        {"logprobs", false},
                        {"store", false},
                        {"metadata", {{"a", "b"}}}};
  EXPECT_EQ(shared_server().chat(ask("Hello", neutral)).status, 200);
}

TEST(Refused, BodiesThatAreNone) {
  expect_refused(post(port(), kChat, std::string()), 400, "invalid_json");
  expect_refused(post(port(), kChat, std::string("{\"a\"")), 400, "invalid_json");
  expect_refused(post(port(), kChat, std::string("[1]")), 400, "invalid_json");
  expect_refused(post(port(), kChat, std::string("\"\xff\"")), 400, "invalid_json");
  expect_refused(post(port(), kChat, "{\"messages\": " + std::string(100'000, '[') + "}"), 400, "invalid_json");
  std::string many = "{\"messages\": [0";
  for (int i = 0; i < 200'000; ++i) many += ",0";
  expect_refused(post(port(), kChat, many + "]}"), 400, "invalid_json", "", "too many values");
  expect_refused(post(port(), kChat, ask("Hello").dump(), {}, "text/plain"), 415, "unsupported_media_type");
  expect_refused(post(port(), kChat, ask("Hello").dump(), {}, ""), 415, "unsupported_media_type");
  EXPECT_EQ(post(port(), kChat, ask("Hello").dump(), {}, "application/json; charset=utf-8").status, 200);
}

TEST(Refused, PathsAndMethods) {
  expect_refused(get(port(), "/"), 404, "not_found");
  expect_refused(get(port(), "/v1/engines"), 404, "not_found");
  expect_refused(get(port(), kChat), 405, "method_not_allowed");
  expect_refused(post(port(), "/v1/models", Json::object()), 405, "method_not_allowed");
  EXPECT_EQ(get(port(), "/health?verbose=1").status, 200);
}

TEST(Refused, WhatIsTooLarge) {
  const RunningServer server(
      {"--max-body", "200000", "--max-text", "1000", "--max-images", "2", "--max-pixels", "1500"});
  expect_refused(server.chat(ask(std::string(300'000, 'a'))), 413, "invalid_http", "", "200000");
  const std::string chunked =
      "POST " + kChat + " HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
      "40000\r\n" + std::string(0x40000, 'a') + "\r\n0\r\n\r\n";
  const RawSocket socket(server.port());
  socket.send(chunked);
  EXPECT_TRUE(socket.read(5).starts_with("HTTP/1.1 413 ")) << "in chunks, whose sum nobody announced";
  expect_refused(server.chat(ask(std::string(1001, 'a'))), 413, "text_too_long");
  const Json part = image_part(data_uri("rgb.png"));
  EXPECT_EQ(server.chat(ask(Json::array({part, part}))).status, 200);
  expect_refused(server.chat(ask(Json::array({part, part, part}))), 413, "too_many_images",
                 "messages[0].content[2].image_url");
  expect_refused(server.chat(ask(Json::array({image_part(drawn_uri(50, 40))}))), 413, "image_too_large");
  expect_refused(server.chat(ask(Json::array({part, image_part(drawn_uri(30, 30))}))), 413, "image_too_large",
                 "messages[0].content[1].image_url.url");
}

TEST(Refused, MoreThanMayWait) {
  const RunningServer server({"--max-queue", "1", "--kv", "2000000"});
  const Json slow = ask("Hello", {{"max_tokens", 180}, {"stream", true}});
  std::vector<RawSocket> clients;
  for (int i = 0; i < 12; ++i) {
    clients.emplace_back(server.port());
    clients.back().send(raw_post(kChat, slow.dump()));
  }
  int answered = 0, refused = 0;
  for (const RawSocket& client : clients) {
    const std::string reply = client.read(20, "HTTP/1.1 ");
    answered += reply.starts_with("HTTP/1.1 200 ");
    if (!reply.starts_with("HTTP/1.1 429 ")) continue;
    ++refused;
    EXPECT_NE(reply.find("Retry-After: 1\r\n"), std::string::npos);
  }
  EXPECT_EQ(answered + refused, 12);
  EXPECT_GE(answered, 1);
  EXPECT_GE(refused, 1);
  clients.clear();
  EXPECT_TRUE(server.is_idle_within(5));
  expect_refused(server.chat(ask("Hello", {{"max_tokens", 3000}})), 400, "invalid_request", "", "2000000");
}

TEST(Refused, WithoutAKey) {
  const TemporaryFolder folder;
  const std::string keys = folder.write("keys", "# ours\n\nabcdefghijklmnop-one\nabcdefghijklmnop-two\n").string();
  const RunningServer server({"--api-key-file", keys});
  const Json body = ask("Hello");
  for (const Headers& headers :
       {Headers{}, Headers{{"Authorization", "Bearer abcdefghijklmnop"}},
        Headers{{"Authorization", "Bearer abcdefghijklmnop-one "}}, Headers{{"Authorization", "abcdefghijklmnop-one"}},
        Headers{{"Authorization", "Bearer # ours"}}, Headers{{"Authorization", "Bearer "}}}) {
    const Reply reply = post(server.port(), kChat, body, headers);
    if (!headers.empty() && headers[0].second.ends_with("one ")) continue;  // Beast trims it: the key itself
    expect_refused(reply, 401, "invalid_api_key");
    EXPECT_EQ(reply.headers.at("www-authenticate"), "Bearer");
  }
  for (const char* key : {"abcdefghijklmnop-one", "abcdefghijklmnop-two"})
    EXPECT_EQ(post(server.port(), kChat, body, {{"Authorization", std::string("Bearer ") + key}}).status, 200);
  EXPECT_EQ(get(server.port(), "/v1/models").status, 401);
  EXPECT_EQ(get(server.port(), "/metrics").status, 401);
  EXPECT_EQ(get(server.port(), "/health").status, 200);
  EXPECT_EQ(get(server.port(), "/ready").status, 200);
}

// A page in a browser on this machine must not use what has no key.
TEST(Refused, PagesOfOtherOrigins) {
  expect_refused(post(port(), kChat, ask("Hello"), {{"Origin", "http://evil.example"}}), 403, "origin_not_allowed");
}

TEST(Refused, ByTheCommandLine) {
  const Arguments serve = {"serve", "--model", kModel.string()};
  const TemporaryFolder folder;
  const auto refused = [&](const Arguments& more, const std::string& says) {
    const Outcome outcome = run_espalier(serve + more);
    EXPECT_EQ(outcome.status, 2) << outcome.err;
    EXPECT_NE(outcome.err.find(says), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.out, "");
  };
  refused({"--host", "0.0.0.0"}, "other machines");
  refused({"--host", "::"}, "other machines");
  refused({"--host", "no.such.host.invalid"}, "no name or address");
  refused({"--api-key-file", (folder / "none").string()}, "cannot read");
  refused({"--api-key-file", folder.write("short", "abc\n").string()}, "at least 16");
  refused({"--api-key-file", folder.write("empty", "# nothing\n").string()}, "no API key");
  refused({"--allow-images", (folder / "none").string()}, "not a folder");
  refused({"--policy", "magic", "--port", "0"}, "magic");
  refused({"--max-queue", "0"}, "--max-queue");
  refused({"--port", "65536"}, "--port");
  const RunningServer other;
  refused({"--port", std::to_string(other.port())}, "cannot listen");
  EXPECT_EQ(RunningServer({"--host", "0.0.0.0", "--no-auth"}).chat(ask("Hello")).status, 200);
}

TEST(Refused, WhileTheModelLoads) {
  serve::ServeOptions options;
  options.port = 0;
  const serve::Server server(options);
  EXPECT_EQ(get(server.port(), "/health").status, 200);
  expect_refused(get(server.port(), "/ready"), 503, "loading");
  const Reply reply = post(server.port(), kChat, ask("Hello"));
  expect_refused(reply, 503, "loading");
  EXPECT_EQ(reply.headers.at("retry-after"), "1");
  EXPECT_NE(get(server.port(), "/metrics").body.find("espalier_ready 0\n"), std::string::npos);
}

TEST(Log, HasNothingUnescaped) {
  RunningServer server({"--log-requests"});
  const RawSocket socket(server.port());
  socket.send("GET /\x1b[31mred\xff\"x HTTP/1.1\r\nHost: a\r\n\r\n");
  socket.read(2, "}}");
  get(server.port(), "/%0aforged");
  server.process().terminate();
  const Outcome outcome = server.process().wait();
  EXPECT_NE(outcome.err.find("404"), std::string::npos) << outcome.err;
  for (const char c : outcome.err) EXPECT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7f)) << outcome.err;
}

}  // namespace
}  // namespace espalier::test
