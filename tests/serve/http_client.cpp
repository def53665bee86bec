// SPDX-License-Identifier: Apache-2.0
#include "tests/serve/http_client.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <stdexcept>

namespace espalier::test {

namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

Reply send(uint16_t port, http::request<http::string_body> request, const Headers& headers) {
  asio::io_context io;
  asio::ip::tcp::socket socket(io);
  socket.connect({asio::ip::make_address("127.0.0.1"), port});
  request.set(http::field::host, "127.0.0.1");
  for (const auto& [name, value] : headers) request.set(name, value);
  request.prepare_payload();
  boost::system::error_code ignored;  // it may answer before it has read all
  http::write(socket, request, ignored);
  boost::beast::flat_buffer buffer;
  http::response_parser<http::string_body> parser;
  parser.body_limit(64 << 20);
  http::read(socket, buffer, parser);
  Reply reply{.status = static_cast<int>(parser.get().result_int()), .headers = {}, .body = parser.get().body()};
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
    reply.headers[name] = std::string(field.value());
  }
  return reply;
}

}  // namespace

Reply get(uint16_t port, const std::string& path, const Headers& headers) {
  return send(port, {http::verb::get, path, 11}, headers);
}

Reply post(uint16_t port, const std::string& path, const std::string& body, const Headers& headers,
           const std::string& type) {
  http::request<http::string_body> request(http::verb::post, path, 11);
  request.body() = body;
  if (!type.empty()) request.set(http::field::content_type, type);
  return send(port, std::move(request), headers);
}

Reply post(uint16_t port, const std::string& path, const nlohmann::json& body, const Headers& headers) {
  return post(port, path, body.dump(), headers);
}

std::vector<nlohmann::json> events_of(const std::string& body) {
  std::vector<nlohmann::json> events;
  bool is_done = false;
  for (size_t begin = 0; begin < body.size();) {
    const size_t end = body.find("\n\n", begin);
    EXPECT_NE(end, std::string::npos) << "an event without its end";
    EXPECT_FALSE(is_done) << "something behind [DONE]";
    if (end == std::string::npos) break;
    const std::string event = body.substr(begin, end - begin);
    EXPECT_TRUE(event.starts_with("data: ")) << event;
    is_done = event == "data: [DONE]";
    if (!is_done) events.push_back(nlohmann::json::parse(event.substr(6), nullptr, false));
    begin = end + 2;
  }
  EXPECT_TRUE(is_done);
  return events;
}

RawSocket::RawSocket(uint16_t port) : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int yes = 1;
  ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  if (::connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) close();
}

bool RawSocket::send(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void RawSocket::shutdown_send() const {
  ::shutdown(fd_, SHUT_WR);
}

void RawSocket::reset() {
  const linger at_once{1, 0};
  ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  close();
}

void RawSocket::close() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

std::string RawSocket::read(double seconds, std::string_view enough) const {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  std::string bytes;
  char buffer[65536];
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    pollfd ready{fd_, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&ready, 1, static_cast<int>(left.count())) <= 0) return bytes;
    const ssize_t got = ::recv(fd_, buffer, sizeof buffer, 0);
    if (got <= 0) return bytes;
    bytes.append(buffer, static_cast<size_t>(got));
    if (!enough.empty() && bytes.find(enough) != std::string::npos) return bytes;
  }
}

std::string raw_post(const std::string& path, const std::string& body, const std::string& more_headers) {
  return "POST " + path +
         " HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n" + more_headers + "\r\n" + body;
}

}  // namespace espalier::test
