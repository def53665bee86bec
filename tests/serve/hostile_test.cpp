// SPDX-License-Identifier: Apache-2.0
// Requests made to break things, from a seed: framing, JSON, base64, pictures. The server lives, answers as before and
// keeps no memory. By hand with more of them:
//   ESPALIER_REQUESTS=100000 serve_tests --gtest_filter='Hostile.*'
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>

#include "tests/serve/running_server.h"

namespace espalier::test {
namespace {

using Random = std::mt19937_64;

int num_requests(int in_the_suite) {
  const char* wanted = std::getenv("ESPALIER_REQUESTS");
  return wanted ? std::atoi(wanted) : in_the_suite;
}

template <typename T>
const T& one_of(const std::vector<T>& list, Random& random) {
  return list[random() % list.size()];
}

void mutate(std::string& bytes, Random& random) {
  static const std::vector<std::string> kWords = {"\r\n",
                                                  "\r\n\r\n",
                                                  "\0",
                                                  "\xff",
                                                  "%00",
                                                  "{",
                                                  "}",
                                                  "[",
                                                  "]",
                                                  "\"",
                                                  "\\u0000",
                                                  "\\ud800",
                                                  "1e999",
                                                  "-1",
                                                  "null",
                                                  "9223372036854775808",
                                                  "chunked",
                                                  "Content-Length: 5\r\n",
                                                  "Transfer-Encoding: chunked\r\n",
                                                  "HTTP/1.0",
                                                  "HTTP/9.9",
                                                  "<image>",
                                                  "</s>",
                                                  "data:image/png;base64,",
                                                  "=",
                                                  "\xe2\x82",
                                                  "Expect: 100-continue\r\n"};
  const int times = 1 + static_cast<int>(random() % 4);
  for (int i = 0; i < times && !bytes.empty(); ++i) {
    const size_t at = random() % bytes.size(), length = 1 + random() % std::min<size_t>(bytes.size() - at, 40);
    switch (random() % 6) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes.erase(at, length);
        break;
      case 2:
        bytes.insert(at, one_of(kWords, random));
        break;
      case 3:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 4:
        bytes[at] ^= static_cast<char>(1 << random() % 8);
        break;
      default:
        if (random() % 8 == 0) bytes.resize(at);
        break;
    }
  }
}

class Requests {
 public:
  Requests() {
    for (const auto& file : std::filesystem::directory_iterator(kGolden / "images"))
      if (file.path().extension() != ".safetensors") pictures_.push_back(read_whole(file.path()));
    std::ranges::sort(pictures_);
  }

  std::string next(Random& random) const {
    std::string picture = one_of(pictures_, random);
    if (random() % 3 == 0) mutate(picture, random);
    std::string encoded = base64(std::as_bytes(std::span(picture)));
    if (random() % 6 == 0) mutate(encoded, random);
    Json part = image_part("data:image/png;base64,");
    static const std::vector<Json> kExtras = {Json::object(),
                                              {{"pin", true}},
                                              {{"pin", {0, 0, 5, 5}}},
                                              {{"max_pixels", 100}},
                                              {{"uuid", "a"}},
                                              {{"pruning", "divprune:keep_ratio=1/2"}},
                                              {{"pruning", "random:keep_ratio=1/3"}}};
    part.update(one_of(kExtras, random));
    static const std::vector<Json> kMore = {Json::object(),
                                            {{"stream", true}},
                                            {{"n", 2}, {"temperature", 3.0}},
                                            {{"logprobs", true}, {"top_logprobs", 2}},
                                            {{"pruning", "catp:keep_ratio=1/3"}},
                                            {{"pruning", "fastv:keep_ratio=1/2,layer=2"}},
                                            {{"stop", {"a", "e"}}},
                                            {{"stats", true}}};
    Json more = one_of(kMore, random);
    more["max_tokens"] = 1 + random() % 3;
    std::string body = ask(Json::array({text_part("What is \xc3\xa9?"), part}), more).dump();
    if (const size_t at = body.find("base64,"); at != std::string::npos) body.insert(at + 7, encoded);
    if (random() % 2 == 0) mutate(body, random);
    std::string request = raw_post(random() % 8 == 0 ? kCompletions : kChat, body, "Connection: close\r\n");
    if (random() % 3 == 0) {
      const size_t head = request.find("\r\n\r\n");
      std::string framing = request.substr(0, head);
      mutate(framing, random);
      request = framing + request.substr(head);
    }
    return request;
  }

 private:
  std::vector<std::string> pictures_;
};

TEST(Hostile, MutatedRequests) {
  // Caches that are soon full: what grows besides is a leak.
  const RunningServer server({"--body-time", "2", "--header-time", "2", "--idle-time", "2", "--image-cache", "1000000",
                              "--prefix-cache", "1000000"});
  const Json calm = ask(Json::array({image_part(data_uri("rgb.png")), text_part("What?")}));
  const std::string before = server.chat(calm).json()["choices"].dump();
  const int count = num_requests(300);
  constexpr int kClients = 4;
  const Requests requests;
  std::mutex mutex;
  std::map<std::string, int> statuses;
  int done = 0;
  int64_t resident_early = 0;
  const auto client = [&](unsigned seed) {
    Random random(seed);
    for (int i = 0; i < count / kClients; ++i) {
      const RawSocket socket(server.port());
      const std::string request = requests.next(random);
      socket.send(request);
      // What waits for more is left alone.
      const std::string reply = socket.read(random() % 100 == 0 ? 3 : 0.1);
      const std::string status = reply.substr(0, 12);
      const std::scoped_lock lock(mutex);
      ++statuses[!socket.is_open() ? "not taken" : reply.empty() ? "left" : status];
      EXPECT_TRUE(reply.empty() || status.starts_with("HTTP/1.1 ")) << reply.substr(0, 100);
      EXPECT_FALSE(!socket.is_open() || status == "HTTP/1.1 500") << reply << "\n" << request.substr(0, 2000);
      if (++done == count / 4) resident_early = server.resident();
    }
  };
  {
    std::vector<std::jthread> clients;
    for (unsigned i = 0; i < kClients; ++i) clients.emplace_back(client, 17 + i);
  }
  EXPECT_TRUE(server.is_idle_within(10));
  const int64_t resident_late = server.resident();
  for (const auto& [status, times] : statuses) std::printf("%-12s %d\n", status.c_str(), times);
  std::printf("resident %.1f MB behind a quarter, %.1f MB at the end\n", double(resident_early) / 1e6,
              double(resident_late) / 1e6);
  if (!kIsSanitized) {
    EXPECT_LT(double(resident_late), 1.1 * double(resident_early) + 30e6);
  }
  EXPECT_EQ(server.chat(calm).json()["choices"].dump(), before);
}

double seconds_for(const RunningServer& server, const Json& body) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(server.chat(body).status, 200);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(Hostile, SlowHeadsBodiesAndIdleConnectionsAreCut) {
  const RunningServer server({"--header-time", "1", "--body-time", "1", "--idle-time", "1"});
  RawSocket head(server.port()), body(server.port()), idle(server.port());
  head.send("POST /v1/chat/completions HTTP/1.1\r\n");
  const std::string whole = raw_post(kChat, ask("Hello").dump());
  body.send(whole.substr(0, whole.size() - 4));
  for (int i = 0; i < 8; ++i) {  // a byte now and then does not help
    RunningServer::wait(200);
    head.send("X");
  }
  EXPECT_TRUE(head.read(3).starts_with("HTTP/1.1 408 "));
  EXPECT_TRUE(body.read(3).starts_with("HTTP/1.1 408 "));
  EXPECT_EQ(idle.read(3), "");
  EXPECT_FALSE(idle.send("GET /health HTTP/1.1\r\n\r\n") && !idle.read(1).empty());
  for (int i = 0; i < 400 && *server.metric("espalier_connections") > 1; ++i) RunningServer::wait(10);
  EXPECT_LE(*server.metric("espalier_connections"), 1);
}

TEST(Hostile, AThousandConnections) {
  const RunningServer server({"--max-connections", "1100"});
  const Json body = ask("Hello");
  server.chat(body);
  const double before = seconds_for(server, body);
  {
    std::vector<RawSocket> sockets;
    const std::string whole = raw_post(kChat, body.dump());
    for (int i = 0; i < 1000; ++i) {
      sockets.emplace_back(server.port());
      ASSERT_TRUE(sockets.back().is_open()) << i;
      switch (i % 4) {
        case 1:
          sockets.back().send("POST /v1/chat");
          break;
        case 2:
          sockets.back().send(whole.substr(0, whole.size() / 2));
          break;
        case 3:
          sockets.back().send("\r\n");
          sockets.back().shutdown_send();
          break;
        default:
          break;
      }
    }
    EXPECT_EQ(server.chat(body).status, 200) << "beside them";
  }
  for (int i = 0; i < 400 && *server.metric("espalier_connections") > 1; ++i) RunningServer::wait(10);
  EXPECT_LE(*server.metric("espalier_connections"), 1);
  EXPECT_LT(seconds_for(server, body), 5 * before + 0.2);
}

TEST(Hostile, TwoHundredClientsThatLeave) {
  const RunningServer server;
  const Json calm = ask(Json::array({image_part(data_uri("rgb.png")), text_part("What?")}));
  const std::string before = server.chat(calm).json()["choices"].dump();
  const double time_before = seconds_for(server, calm);
  Random random(5);
  std::vector<std::pair<RawSocket, int>> clients;  // and when it leaves
  const int count = 200;
  for (int i = 0; i < count; ++i) {
    Json content = Json::array({text_part("Hello")});
    for (size_t pictures = random() % 4; pictures > 0; --pictures)
      content.push_back(image_part(drawn_uri(60, 60, static_cast<unsigned>(random()))));
    const Json body = ask(content, {{"max_tokens", 400}, {"stream", random() % 2 == 0}});
    clients.emplace_back(RawSocket(server.port()), static_cast<int>(random() % 400));
    const std::string request = raw_post(kChat, body.dump());
    clients.back().first.send(random() % 5 == 0 ? request.substr(0, random() % request.size()) : request);
  }
  for (int tick = 0; tick < 400; ++tick) {
    for (auto& [socket, at] : clients)
      if (at == tick) tick % 2 ? socket.reset() : socket.close();
    RunningServer::wait(1);
  }
  EXPECT_TRUE(server.is_idle_within(5));
  EXPECT_EQ(server.metric("espalier_kv_bytes_promised"), 0);
  EXPECT_EQ(server.chat(calm).json()["choices"].dump(), before);
  EXPECT_LT(seconds_for(server, calm), 5 * time_before + 0.2);
}

}  // namespace
}  // namespace espalier::test
