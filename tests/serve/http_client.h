// SPDX-License-Identifier: Apache-2.0
// A small client: whole requests through Boost.Beast, and bare sockets for everything that is no HTTP.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace espalier::test {

struct Reply {
  int status = 0;
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  nlohmann::json json() const { return nlohmann::json::parse(body, nullptr, /*allow_exceptions=*/false); }
};

using Headers = std::vector<std::pair<std::string, std::string>>;

// Throws std::runtime_error when there is no answer.
Reply get(uint16_t port, const std::string& path, const Headers& headers = {});
Reply post(uint16_t port, const std::string& path, const std::string& body, const Headers& headers = {},
           const std::string& type = "application/json");
Reply post(uint16_t port, const std::string& path, const nlohmann::json& body, const Headers& headers = {});

// The objects of a stream of events. A failure unless the last is [DONE].
std::vector<nlohmann::json> events_of(const std::string& body);

// A connection without any HTTP.
class RawSocket {
 public:
  explicit RawSocket(uint16_t port);
  ~RawSocket() { close(); }
  RawSocket(RawSocket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  RawSocket(const RawSocket&) = delete;
  RawSocket& operator=(const RawSocket&) = delete;

  bool is_open() const { return fd_ >= 0; }
  bool send(std::string_view bytes) const;  // false when the other side has closed
  void shutdown_send() const;
  void reset();  // closes with RST
  void close();
  // What comes until the other side closes, `enough` stands in it, or so many seconds pass.
  std::string read(double seconds, std::string_view enough = {}) const;

 private:
  int fd_;
};

std::string raw_post(const std::string& path, const std::string& body, const std::string& more_headers = {});

}  // namespace espalier::test
