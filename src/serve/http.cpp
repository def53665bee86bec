// SPDX-License-Identifier: Apache-2.0
// One thread serves all connections, so that nothing of them needs a lock; exchanges reach it by posting. A connection
// is always read: before a request for its first byte, during an answer for the end of the client.
#include "serve/http.h"

#include <algorithm>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

#include "espalier/error.h"

namespace espalier::serve {

namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using tcp = asio::ip::tcp;
using Code = boost::system::error_code;
using Milliseconds = std::chrono::milliseconds;

constexpr size_t kPieceBytes = 64 << 10;  // of a write
constexpr int kThreads = 2;               // that read requests

const char* reason_of(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Payload Too Large";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Unknown";
  }
}

std::string hexadecimal(size_t number) {
  char text[17];
  std::snprintf(text, sizeof text, "%zx", number);
  return text;
}

}  // namespace

std::optional<std::string> HttpRequest::header(const std::string& name) const {
  const auto found = std::ranges::find(headers, name, &std::pair<std::string, std::string>::first);
  return found == headers.end() ? std::nullopt : std::optional(found->second);
}

class Connection;

struct HttpServer::Impl : std::enable_shared_from_this<Impl> {
  Impl(const HttpLimits& given_limits, HttpHandlers given) : limits(given_limits), handlers(std::move(given)) {}

  void accept();
  void counted_exchange(int64_t change) {
    const std::scoped_lock lock(mutex);
    num_exchanges += change;
    changed.notify_all();
  }

  const HttpLimits limits;
  const HttpHandlers handlers;
  asio::io_context io{1};
  asio::thread_pool readers{kThreads};
  tcp::acceptor acceptor{io};
  asio::steady_timer accept_again{io};
  std::thread thread;
  std::unordered_set<std::shared_ptr<Connection>> connections;  // of the network's thread
  bool is_accepting = false;                                    // an accept is under way
  bool is_stopping = false;
  std::atomic<int64_t> num_connections = 0;
  std::atomic<bool> is_over = false;  // nothing that is posted will be done
  std::atomic<size_t> bodies_bytes = 0;
  uint16_t port = 0;
  std::mutex mutex;
  std::condition_variable changed;
  int64_t num_exchanges = 0;
};

namespace {

class ConnectionExchange final : public Exchange, public std::enable_shared_from_this<ConnectionExchange> {
 public:
  ConnectionExchange(std::shared_ptr<HttpServer::Impl> server, std::weak_ptr<Connection> connection)
      : server_(std::move(server)), connection_(std::move(connection)) {}

  void answer(HttpAnswer answer) override;
  void begin(HttpAnswer head) override;
  void write(std::string piece) override;
  void end() override;

  void on_left(std::function<void(Left)> call) override {
    std::optional<Left> left;
    {
      const std::scoped_lock lock(mutex_);
      left = left_;
      if (!left) {
        call_ = std::move(call);
        return;
      }
    }
    call(*left);
  }
  // Only the first is told.
  void leave(Left left) {
    std::function<void(Left)> call;
    {
      const std::scoped_lock lock(mutex_);
      if (left_) return;
      left_ = left;
      call = std::move(call_);
      call_ = nullptr;
    }
    if (call) call(left);
  }
  // Over: what was to be called is let go.
  void finish() {
    const std::scoped_lock lock(mutex_);
    call_ = nullptr;
  }

 private:
  template <typename Work>
  void on_connection(Work work);

  std::shared_ptr<HttpServer::Impl> server_;  // may be over before the work that writes the answer
  std::weak_ptr<Connection> connection_;
  std::mutex mutex_;
  std::function<void(Left)> call_;
  std::optional<Left> left_;
};

}  // namespace

// All of it on the network's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(HttpServer::Impl& server, tcp::socket socket)
      : server_(server),
        socket_(std::move(socket)),
        read_timer_(server.io),
        write_timer_(server.io),
        answer_timer_(server.io),
        buffer_(server.limits.header_bytes + server.limits.ahead_bytes) {
    Code code;
    const tcp::endpoint peer = socket_.remote_endpoint(code);
    if (!code) peer_ = peer.address().to_string();
    socket_.set_option(tcp::no_delay(true), code);
  }

  void wait_for_request() {
    state_ = State::kIdle;
    if (server_.is_stopping) return close();
    if (buffer_.size() > 0) {
      if (!is_watching_) return read_head();
      Code ignored;
      socket_.cancel(ignored);  // on_watched goes on
      return;
    }
    arm(read_timer_, server_.limits.idle_time, [](Connection& self) {
      if (self.state_ == State::kIdle) self.close();
    });
    watch();
  }
  void stop() {
    closes_behind_ = true;
    if (state_ == State::kIdle) close();
  }
  void give_up() {
    if (exchange_) exchange_->leave(Exchange::Left::kStopping);
  }

  void close() {
    if (state_ == State::kClosed) return;
    state_ = State::kClosed;
    Code ignored;
    socket_.close(ignored);
    for (asio::steady_timer* timer : {&read_timer_, &write_timer_, &answer_timer_}) timer->cancel();
    if (exchange_) {
      exchange_->leave(Exchange::Left::kClient);
      end_exchange();
    }
    const auto self = shared_from_this();
    server_.connections.erase(self);
    --server_.num_connections;
    if (!server_.is_accepting && !server_.is_stopping) server_.accept();
  }

  // ---- for its exchange ----
  bool is_of(const ConnectionExchange* exchange) const { return exchange_.get() == exchange; }
  void send_whole(const HttpAnswer& answer) {
    send(head_of(answer, "Content-Length: " + std::to_string(answer.body.size())) + (is_head_ ? "" : answer.body));
    finish();
  }
  void send_head(const HttpAnswer& head) {
    is_chunked_ = is_new_enough_;
    if (!is_chunked_) closes_behind_ = true;
    send(head_of(head, is_chunked_ ? "Transfer-Encoding: chunked" : ""));
  }
  void send_piece(const std::string& piece) {
    if (piece.empty()) return;
    send(is_chunked_ ? hexadecimal(piece.size()) + "\r\n" + piece + "\r\n" : piece);
  }
  void send_end() {
    if (is_chunked_) send("0\r\n\r\n");
    finish();
  }

 private:
  enum class State : uint8_t { kIdle, kReading, kAnswering, kLingering, kClosed };

  template <typename Then>
  void arm(asio::steady_timer& timer, Milliseconds time, Then then) {
    timer.expires_after(time);
    timer.async_wait([weak = weak_from_this(), then](const Code& code) {
      const auto self = weak.lock();
      if (!code && self && self->state_ != State::kClosed) then(*self);
    });
  }

  // ---- reading ----

  // For the first byte of a request, or for the end of a client that waits for an answer.
  void watch() {
    if (is_watching_) return;
    is_watching_ = true;
    const size_t room = std::min<size_t>(4096, buffer_.max_size() - buffer_.size());
    socket_.async_read_some(buffer_.prepare(room), [self = shared_from_this()](const Code& code, size_t bytes) {
      self->is_watching_ = false;
      self->buffer_.commit(bytes);
      self->on_watched(code);
    });
  }

  void on_watched(const Code& code) {
    if (state_ == State::kClosed) return;
    if (state_ == State::kIdle && code == asio::error::operation_aborted) return wait_for_request();
    if (code) return close();
    if (state_ == State::kLingering) {
      buffer_.consume(buffer_.size());
      lingered_ += 4096;
      return lingered_ > server_.limits.body_bytes ? close() : watch();
    }
    if (state_ == State::kIdle) return read_head();
    if (buffer_.size() > server_.limits.ahead_bytes) return close();
    watch();
  }

  void read_head() {
    state_ = State::kReading;
    parser_.emplace();
    parser_->header_limit(static_cast<std::uint32_t>(server_.limits.header_bytes));
    parser_->body_limit(server_.limits.body_bytes);
    arm(read_timer_, server_.limits.header_time, [](Connection& self) { self.note_late(); });
    http::async_read_header(socket_, buffer_, *parser_,
                            [self = shared_from_this()](const Code& code, size_t) { self->on_head(code); });
  }

  void on_head(const Code& code) {
    if (state_ != State::kReading) return;
    read_timer_.cancel();
    if (code) return on_bad_request(code, "head");
    const auto& message = parser_->get();
    request_ = {};
    request_.peer = peer_;
    request_.method = std::string(message.method_string());
    const std::string target(message.target());
    request_.path = target.substr(0, target.find('?'));
    for (const auto& field : message) {
      std::string name(field.name_string());
      std::ranges::transform(name, name.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c + 32) : c; });
      request_.headers.emplace_back(std::move(name), std::string(field.value()));
    }
    is_head_ = message.method() == http::verb::head;
    is_new_enough_ = message.version() >= 11;
    if (!message.keep_alive() || server_.is_stopping) closes_behind_ = true;
    if (const auto answer = server_.handlers.check(request_)) {
      if (parser_->chunked() || parser_->content_length().value_or(0) > 0) closes_behind_ = true;  // it is not read
      return answer_without_exchange(*answer);
    }
    if (!count_body()) return refuse(503, "too many bytes of requests at once");
    const std::optional<std::string> expects = request_.header("expect");
    if (!expects) return read_body();
    if (!beast::iequals(*expects, "100-continue")) return refuse(417, "Expect: " + *expects + " is not known");
    static const std::string kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    arm(write_timer_, server_.limits.write_time, [](Connection& self) {
      if (self.state_ == State::kReading) self.close();
    });
    asio::async_write(socket_, asio::buffer(kContinue), [self = shared_from_this()](const Code& error, size_t) {
      self->write_timer_.cancel();
      if (self->state_ != State::kReading) return;
      error ? self->close() : self->read_body();
    });
  }

  // What the body may become is counted before it is read.
  bool count_body() {
    const auto length = parser_->content_length();
    const size_t bytes = length ? static_cast<size_t>(*length) : parser_->chunked() ? server_.limits.body_bytes : 0;
    std::atomic<size_t>& all = server_.bodies_bytes;
    if (all.fetch_add(bytes) + bytes > server_.limits.bodies_bytes) {
      all -= bytes;
      return false;
    }
    request_.counted = std::shared_ptr<void>(nullptr, [&all, bytes](void*) { all -= bytes; });
    return true;
  }

  void read_body() {
    arm(read_timer_, server_.limits.body_time, [](Connection& self) { self.note_late(); });
    http::async_read(socket_, buffer_, *parser_,
                     [self = shared_from_this()](const Code& code, size_t) { self->on_body(code); });
  }

  void on_body(const Code& code) {
    if (state_ != State::kReading) return;
    read_timer_.cancel();
    if (code) return on_bad_request(code, "body");
    request_.body = std::move(parser_->get().body());
    request_.arrived = std::chrono::steady_clock::now();
    parser_.reset();
    state_ = State::kAnswering;
    exchange_ = std::make_shared<ConnectionExchange>(server_.shared_from_this(), weak_from_this());
    server_.counted_exchange(+1);
    arm(answer_timer_, server_.limits.answer_time, [](Connection& self) {
      if (self.exchange_) self.exchange_->leave(Exchange::Left::kTimeout);
    });
    watch();
    asio::post(server_.readers, [&server = server_, request = std::make_shared<HttpRequest>(std::move(request_)),
                                 exchange = exchange_] { server.handlers.take(std::move(*request), exchange); });
  }

  // What is being read ends, and says so.
  void note_late() {
    if (state_ != State::kReading) return;
    is_late_ = true;
    Code ignored;
    socket_.cancel(ignored);
  }

  void on_bad_request(const Code& code, const char* what) {
    if (std::exchange(is_late_, false)) return refuse(408, std::string("the ") + what + " took too long");
    if (code == http::error::end_of_stream || code == http::error::partial_message || code.category() != http_category_)
      return close();  // the client has left
    if (code == http::error::body_limit)
      return refuse(413, "the body is larger than " + std::to_string(server_.limits.body_bytes) + " bytes");
    if (code == http::error::header_limit || code == http::error::buffer_overflow)
      return refuse(431, "the head is larger than " + std::to_string(server_.limits.header_bytes) + " bytes");
    refuse(400, "not HTTP/1.1: " + code.message());
  }

  void refuse(int status, const std::string& message) {
    closes_behind_ = true;
    answer_without_exchange(server_.handlers.refuse(status, message));
  }

  void answer_without_exchange(const HttpAnswer& answer) {
    read_timer_.cancel();
    request_ = {};
    state_ = State::kAnswering;
    send_whole(answer);
  }

  // ---- writing ----

  std::string head_of(const HttpAnswer& answer, const std::string& length) const {
    std::string head = "HTTP/1.1 " + std::to_string(answer.status) + " " + reason_of(answer.status) +
                       "\r\nServer: espalier\r\nContent-Type: " + answer.type + "\r\n";
    if (!length.empty()) head += length + "\r\n";
    for (const auto& [name, value] : answer.headers) head += name + ": " + value + "\r\n";
    return head + (closes_behind_ ? "Connection: close\r\n\r\n" : "Connection: keep-alive\r\n\r\n");
  }

  void send(std::string bytes) {
    if (state_ == State::kClosed) return;
    unsent_bytes_ += bytes.size();
    if (exchange_ && is_chunked_ && unsent_bytes_ > server_.limits.unsent_bytes) return close();  // it does not read
    unsent_.push_back(std::move(bytes));
    if (!is_writing_) write_next();
  }

  void write_next() {
    is_writing_ = true;
    const std::string& bytes = unsent_.front();
    const size_t size = std::min(kPieceBytes, bytes.size() - written_);
    arm(write_timer_, server_.limits.write_time, [](Connection& self) {
      if (self.is_writing_) self.close();
    });
    asio::async_write(socket_, asio::buffer(bytes.data() + written_, size),
                      [self = shared_from_this()](const Code& code, size_t done) { self->on_written(code, done); });
  }

  void on_written(const Code& code, size_t bytes) {
    is_writing_ = false;
    write_timer_.cancel();
    if (state_ == State::kClosed) return;
    if (code) return close();
    unsent_bytes_ -= bytes;
    written_ += bytes;
    if (written_ == unsent_.front().size()) {
      unsent_.pop_front();
      written_ = 0;
    }
    if (!unsent_.empty()) return write_next();
    if (is_finished_) sent();
  }

  void finish() {
    is_finished_ = true;
    answer_timer_.cancel();
    if (!is_writing_ && unsent_.empty()) sent();
  }

  void sent() {
    is_finished_ = is_chunked_ = false;
    if (exchange_) end_exchange();
    if (!closes_behind_) return wait_for_request();
    // A socket that is closed with bytes unread resets the connection, and the client may lose the answer.
    state_ = State::kLingering;
    Code ignored;
    socket_.shutdown(tcp::socket::shutdown_send, ignored);
    arm(read_timer_, Milliseconds(2000), [](Connection& self) {
      if (self.state_ == State::kLingering) self.close();
    });
    buffer_.consume(buffer_.size());
    parser_.reset();
    watch();
  }

  void end_exchange() {
    exchange_->finish();
    exchange_.reset();
    server_.counted_exchange(-1);
  }

  HttpServer::Impl& server_;
  tcp::socket socket_;
  asio::steady_timer read_timer_, write_timer_, answer_timer_;
  beast::flat_buffer buffer_;
  std::optional<http::request_parser<http::string_body>> parser_;
  const boost::system::error_category& http_category_ = http::make_error_code(http::error::end_of_stream).category();
  std::string peer_;
  HttpRequest request_;
  std::shared_ptr<ConnectionExchange> exchange_;
  State state_ = State::kIdle;
  std::deque<std::string> unsent_;
  size_t written_ = 0;  // of the first of them
  size_t unsent_bytes_ = 0, lingered_ = 0;
  bool is_watching_ = false, is_writing_ = false;
  bool is_late_ = false;      // the head or the body that is being read
  bool is_finished_ = false;  // the last byte is among unsent_
  bool is_chunked_ = false, is_head_ = false, is_new_enough_ = true, closes_behind_ = false;
};

namespace {

template <typename Work>
void ConnectionExchange::on_connection(Work work) {
  if (server_->is_over) return;
  asio::post(server_->io, [self = shared_from_this(), work = std::move(work)] {
    const auto connection = self->connection_.lock();
    if (connection && connection->is_of(self.get())) work(*connection);
  });
}

void ConnectionExchange::answer(HttpAnswer answer) {
  on_connection([answer = std::move(answer)](Connection& to) { to.send_whole(answer); });
}
void ConnectionExchange::begin(HttpAnswer head) {
  on_connection([head = std::move(head)](Connection& to) { to.send_head(head); });
}
void ConnectionExchange::write(std::string piece) {
  on_connection([piece = std::move(piece)](Connection& to) { to.send_piece(piece); });
}
void ConnectionExchange::end() {
  on_connection([](Connection& to) { to.send_end(); });
}

std::vector<tcp::endpoint> endpoints_of(const std::string& host, uint16_t port) {
  asio::io_context io;
  tcp::resolver resolver(io);
  Code code;
  const auto found = resolver.resolve(host, std::to_string(port), tcp::resolver::passive, code);
  if (code || found.empty()) throw Error("host: " + host + " is no name or address of this machine");
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry : found) endpoints.push_back(entry.endpoint());
  return endpoints;
}

}  // namespace

bool is_loopback(const std::string& host) {
  return std::ranges::all_of(endpoints_of(host, 0), [](const tcp::endpoint& e) { return e.address().is_loopback(); });
}

void HttpServer::Impl::accept() {
  is_accepting = true;
  acceptor.async_accept([this](const Code& code, tcp::socket socket) {
    is_accepting = false;
    if (is_stopping) return;
    if (code) {  // of descriptors, mostly
      accept_again.expires_after(Milliseconds(50));
      accept_again.async_wait([this](const Code& error) {
        if (!error && !is_stopping && !is_accepting) accept();
      });
      return;
    }
    const auto connection = std::make_shared<Connection>(*this, std::move(socket));
    connections.insert(connection);
    ++num_connections;
    connection->wait_for_request();
    // Those that come when all places are taken wait before the door.
    if (static_cast<size_t>(num_connections) < limits.connections && !is_accepting) accept();
  });
}

HttpServer::HttpServer(const std::string& host, uint16_t port, const HttpLimits& limits, HttpHandlers handlers)
    : impl_(std::make_shared<Impl>(limits, std::move(handlers))) {
  const tcp::endpoint at = endpoints_of(host, port).front();
  tcp::acceptor& acceptor = impl_->acceptor;
  Code code;
  acceptor.open(at.protocol(), code);
  if (!code) acceptor.set_option(tcp::acceptor::reuse_address(true), code);
  if (!code) acceptor.bind(at, code);
  if (!code) acceptor.listen(asio::socket_base::max_listen_connections, code);
  if (code) throw Error("cannot listen on " + host + ":" + std::to_string(port) + ": " + code.message());
  impl_->port = acceptor.local_endpoint().port();
}

HttpServer::~HttpServer() {
  stop_accepting();
  asio::post(impl_->io, [this] {
    const auto left = impl_->connections;
    for (const auto& connection : left) connection->close();
  });
  impl_->readers.join();
  if (impl_->thread.joinable()) {
    impl_->is_over = true;
    asio::post(impl_->io, [this] { impl_->io.stop(); });
    impl_->thread.join();
  }
}

void HttpServer::start() {
  impl_->thread = std::thread([this] {
    impl_->accept();
    const auto keep = asio::make_work_guard(impl_->io);
    impl_->io.run();
  });
}

uint16_t HttpServer::port() const {
  return impl_->port;
}
int64_t HttpServer::num_connections() const {
  return impl_->num_connections;
}

void HttpServer::stop_accepting() {
  asio::post(impl_->io, [this] {
    impl_->is_stopping = true;
    Code ignored;
    impl_->acceptor.close(ignored);
    impl_->accept_again.cancel();
    const auto all = impl_->connections;
    for (const auto& connection : all) connection->stop();
  });
}

bool HttpServer::wait_until_answered(Milliseconds time) {
  std::unique_lock lock(impl_->mutex);
  return impl_->changed.wait_for(lock, time, [this] { return impl_->num_exchanges == 0; });
}

void HttpServer::give_up() {
  asio::post(impl_->io, [this] {
    const auto all = impl_->connections;
    for (const auto& connection : all) connection->give_up();
  });
}

}  // namespace espalier::serve
