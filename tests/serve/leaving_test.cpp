// SPDX-License-Identifier: Apache-2.0
// Clients that leave, servers that are told to stop: what runs ends at once, and nothing is left behind.
#include <chrono>
#include <random>

#include "tests/serve/running_server.h"

namespace espalier::test {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Three requests that each spend their time in one phase.
Json long_encode() {
  Json content = Json::array();
  for (int i = 0; i < 60; ++i) content.push_back(image_part(drawn_uri(112, 112, static_cast<unsigned>(i + 1))));
  return ask(content, {{"max_tokens", 1}});
}
Json long_prefill() {
  std::string text;
  for (int i = 0; i < 900; ++i) text += "a fox ";
  return ask(text, {{"max_tokens", 1}});
}
Json long_decode(int tokens = 3500) {
  return ask("Hello", {{"max_tokens", tokens}});
}

// The engine notices within a layer (scheduler_test.cpp): here, that leaving reaches it, whatever is being done, of
// whole answers and streams, by FIN and by RST.
TEST(Leaving, EndsTheWorkInEveryPhase) {
  const RunningServer server({"--image-cache", "0", "--prefix-cache", "0"}, "llava15");
  for (const auto& [name, body] :
       {std::pair("encode", long_encode()), std::pair("prefill", long_prefill()), std::pair("decode", long_decode())}) {
    for (const bool streams : {false, true})
      for (const bool resets : {false, true}) {
        SCOPED_TRACE(std::string(name) + (streams ? " streamed" : "") + (resets ? " reset" : ""));
        Json asked = body;
        if (streams) asked["stream"] = true;
        const double cancelled = *server.metric("espalier_requests_cancelled_total");
        RawSocket client(server.port());
        client.send(raw_post(kChat, asked.dump()));
        for (int i = 0; i < 1000 && server.metric("espalier_running") == 0; ++i) RunningServer::wait(1);
        resets ? client.reset() : client.close();
        EXPECT_TRUE(server.is_idle_within(1.0));
        if (std::string(name) == "decode") {
          EXPECT_EQ(*server.metric("espalier_requests_cancelled_total"), cancelled + 1);
        }
      }
  }
  EXPECT_EQ(server.metric("espalier_kv_bytes_in_use"), 0);
}

TEST(Leaving, WhoWaitsLeavesTheQueue) {
  const RunningServer server({"--kv", "8000000"});
  RawSocket first(server.port()), second(server.port());
  first.send(raw_post(kChat, long_decode(900).dump()));
  for (int i = 0; i < 1000 && server.metric("espalier_running") == 0; ++i) RunningServer::wait(1);
  second.send(raw_post(kChat, long_decode(900).dump()));
  for (int i = 0; i < 1000 && server.metric("espalier_queue") == 0; ++i) RunningServer::wait(1);
  second.close();
  for (int i = 0; i < 1000 && server.metric("espalier_queue") != 0; ++i) RunningServer::wait(1);
  EXPECT_EQ(server.metric("espalier_queue"), 0);
  EXPECT_EQ(server.metric("espalier_running"), 1) << "the first goes on";
  EXPECT_TRUE(first.read(30 * kPatience, "\"finish_reason\":\"length\"").find("200 OK") != std::string::npos);
}

// A client that asks on and does not read: its answer is computed and its place given up.
TEST(Leaving, WhoDoesNotReadHoldsNoPlace) {
  const RunningServer server({"--write-time", "1"});
  std::vector<RawSocket> clients;
  for (int i = 0; i < 20; ++i) {
    clients.emplace_back(server.port());
    clients.back().send(raw_post(kChat, ask("Hello", {{"max_tokens", 300}, {"stream", true}}).dump()));
  }
  EXPECT_TRUE(server.is_idle_within(30));
  EXPECT_EQ(server.chat(ask("Hello")).status, 200);
}

// What half closes has nothing more to say, and is taken for gone.
TEST(Leaving, HalfClosedSocketsHaveLeft) {
  const RunningServer& server = shared_server();
  RawSocket client(server.port());
  client.send(raw_post(kChat, long_decode().dump()));
  client.shutdown_send();
  EXPECT_TRUE(server.is_idle_within(2));
}

TEST(Leaving, SeveralRequestsOnOneConnection) {
  const RawSocket client(shared_server().port());
  const std::string one = raw_post(kChat, ask("Hello").dump());
  client.send(one + one + raw_post(kChat, ask("Hello").dump(), "Connection: close\r\n"));
  const std::string replies = client.read(20);
  size_t count = 0;
  for (size_t at = replies.find("HTTP/1.1 200 OK"); at != std::string::npos;
       at = replies.find("HTTP/1.1 200 OK", at + 1))
    ++count;
  EXPECT_EQ(count, 3U) << replies.substr(0, 500);
}

TEST(Stopping, LetsRunningRequestsEnd) {
  for (const bool streams : {false, true}) {
    RunningServer server({"--grace", "60"});
    const RawSocket client(server.port());
    RawSocket idle(server.port());
    client.send(raw_post(kChat, ask("Hello", {{"max_tokens", kIsSanitized ? 50 : 1500}, {"stream", streams}}).dump()));
    for (int i = 0; i < 1000 && server.metric("espalier_running") == 0; ++i) RunningServer::wait(1);
    server.process().terminate();
    const std::string reply = client.read(60);
    EXPECT_NE(reply.find("\"finish_reason\":\"length\""), std::string::npos) << reply.substr(0, 300);
    EXPECT_EQ(idle.read(5), "");
    const Outcome outcome = server.process().wait();
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
  }
}

TEST(Stopping, CancelsWhatTakesLonger) {
  for (const bool streams : {false, true}) {
    RunningServer server({"--grace", "0"});
    const RawSocket client(server.port());
    client.send(raw_post(kChat, ask("Hello", {{"max_tokens", 3900}, {"stream", streams}}).dump()));
    for (int i = 0; i < 1000 && server.metric("espalier_running") == 0; ++i) RunningServer::wait(1);
    std::string reply;
    Outcome outcome;
    const double took = seconds_of([&] {
      server.process().terminate();
      reply = client.read(20);
      outcome = server.process().wait();
    });
    EXPECT_LT(took, 5);
    EXPECT_EQ(outcome.status, 0);
    EXPECT_NE(reply.find("\"code\":\"stopping\""), std::string::npos) << reply.substr(0, 300);
    EXPECT_TRUE(streams || reply.starts_with("HTTP/1.1 503 "));
  }
}

TEST(Stopping, ByCtrlC) {
  RunningServer server;
  server.process().interrupt();
  EXPECT_EQ(server.process().wait().status, 130);
}

TEST(Limits, OfTheTimeOfAnAnswer) {
  const RunningServer server({"--answer-time", "1"});
  const Json slow = ask("Hello", {{"max_tokens", 3900}, {"n", 8}});
  const Reply reply = server.chat(slow);
  if (reply.status == 200) GTEST_SKIP() << "this machine answers in a second";
  expect_refused(reply, 504, "timeout");
  EXPECT_TRUE(server.is_idle_within(2));
}

}  // namespace
}  // namespace espalier::test
