// SPDX-License-Identifier: Apache-2.0
// HTTP/1.1 as the server needs it: requests in, whole or streamed answers out, with a limit on everything that a client
// decides. What a request means is not known here. Boost.Beast stands behind it, in http.cpp alone, because a
// connection can be read while its request is being answered: that is how a client's leaving is noticed at once, of a
// streamed answer and of one that is sent in one piece.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace espalier::serve {

struct HttpLimits {
  size_t header_bytes = 16 << 10;
  size_t body_bytes = size_t{32} << 20;     // of one request
  size_t bodies_bytes = size_t{512} << 20;  // of all that are being read
  size_t ahead_bytes = 64 << 10;            // that a client may send before its last request was answered
  size_t unsent_bytes = size_t{8} << 20;    // of an answer, that a client has not taken yet
  size_t connections = 2048;
  std::chrono::milliseconds header_time{10'000};  // from its first byte to its end
  std::chrono::milliseconds body_time{60'000};
  std::chrono::milliseconds idle_time{60'000};   // between requests
  std::chrono::milliseconds write_time{30'000};  // in which a client must take a piece of at most 64 KiB
  std::chrono::milliseconds answer_time{600'000};
};

struct HttpRequest {
  std::string method, path;  // the path without its query
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string peer;                               // address of the client
  std::chrono::steady_clock::time_point arrived;  // its last byte

  // The first of this name, which is written in lower case; nothing when there is none.
  std::optional<std::string> header(const std::string& name) const;

  std::shared_ptr<void> counted;  // among bodies_bytes, as long as it is held
};

struct HttpAnswer {
  int status = 200;
  std::string type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;
};

// The answer to one request: answer(), or begin(), write() as often as wanted, end(). Thread-safe; what comes for a
// client that has left is dropped.
class Exchange {
 public:
  enum class Left : uint8_t {
    kClient,   // closed, reset, or took nothing for write_time: nobody reads what is still written
    kTimeout,  // answer_time is over; the client is still there
    kStopping  // as kTimeout, because the server ends
  };
  virtual ~Exchange() = default;
  virtual void answer(HttpAnswer answer) = 0;
  virtual void begin(HttpAnswer head) = 0;  // without a body
  virtual void write(std::string piece) = 0;
  virtual void end() = 0;
  // Called at most once, on any thread: nobody waits for more work. At once where that is so already.
  virtual void on_left(std::function<void(Left)> call) = 0;
};

struct HttpHandlers {
  // When the head is read, on the network's thread: an answer in place of reading the body, where it takes no time.
  std::function<std::optional<HttpAnswer>(const HttpRequest& head)> check;
  // On one of a few threads of their own. Must not throw.
  std::function<void(HttpRequest request, std::shared_ptr<Exchange> exchange)> take;
  // What is said of requests that are none: 400, 408, 413, 431, 503.
  std::function<HttpAnswer(int status, const std::string& message)> refuse;
};

class HttpServer {
 public:
  struct Impl;
  // Listens from now on; requests are taken after start(). Port 0: a free one. Throws Error when it cannot.
  HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, HttpHandlers handlers);
  // Closes what is left.
  ~HttpServer();

  void start();
  uint16_t port() const;
  int64_t num_connections() const;
  // No new requests: connections without one are closed, others behind theirs.
  void stop_accepting();
  // False when some are still being answered behind `time`.
  bool wait_until_answered(std::chrono::milliseconds time);
  // Tells every exchange that is left kStopping.
  void give_up();

 private:
  std::shared_ptr<Impl> impl_;
};

// Whether a host (a name or an address) is this machine and no other can reach it. Throws Error for a name that is
// none.
bool is_loopback(const std::string& host);

}  // namespace espalier::serve
