// SPDX-License-Identifier: Apache-2.0
#include "serve/server.h"

#include <algorithm>
#include <atomic>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "espalier/error.h"
#include "espalier/scheduler.h"
#include "serve/api_error.h"
#include "serve/api_keys.h"
#include "serve/asked.h"
#include "serve/generation.h"
#include "serve/log_text.h"
#include "serve/metrics.h"
#include "serve/policies.h"

namespace espalier::serve {

namespace {

using Json = nlohmann::ordered_json;

HttpAnswer json_answer(const Json& json) {
  return {.body = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n", .headers = {}};
}

ServeOptions checked(ServeOptions options) {
  if (!options.allow_images.empty()) {
    std::error_code code;
    const auto folder = std::filesystem::canonical(options.allow_images, code);
    if (code || !std::filesystem::is_directory(folder, code))
      throw Error("allow-images: " + options.allow_images.string() + " is not a folder");
    options.allow_images = folder;
  }
  if (options.api_key_file.empty() && !options.no_auth && !is_loopback(options.host))
    throw Error("host: " + options.host + " can be reached from other machines; give an API key file, or --no-auth");
  return options;
}

// What there is once the model is loaded.
struct Opened {
  Opened(const Engine& of, const ServeOptions& options, Metrics& metrics)
      : engine(of),
        scheduler(of, {.kv_bytes = options.kv_bytes,
                       .prefix_cache_bytes = options.prefix_cache_bytes,
                       .max_waiting = options.max_queue}),
        parts{of, scheduler, metrics, options.model_name, options.log},
        max_positions(of.count_tokens(RawPrompt{.text = "a", .images = {}, .example_begins = {}}).max_positions) {}

  const Engine& engine;
  Scheduler scheduler;
  GenerationParts parts;
  int64_t max_positions;
};

}  // namespace

struct Server::Impl {
  explicit Impl(const ServeOptions& given)
      : options(checked(given)),
        keys(options.api_key_file.empty() ? ApiKeys() : ApiKeys::read(options.api_key_file)),
        policies(options.plugins),
        http(
            options.host, options.port, options.http,
            {.check = [this](const HttpRequest& head) { return check(head); },
             .take = [this](HttpRequest request, const std::shared_ptr<Exchange>& to) { take(std::move(request), to); },
             .refuse =
                 [this](int status, const std::string& message) {
                   return refusal("-", ApiError(status, "invalid_http", message));
                 }}) {}

  using Answering = HttpAnswer (Impl::*)(const HttpRequest&, Opened*);
  struct Route {
    const char* method;
    const char* path;
    bool needs_key;
    bool needs_model;
    Answering answer;  // none: an answer of the model
  };
  static std::span<const Route> routes();
  const Route* route_of(const HttpRequest& head) const;

  std::optional<HttpAnswer> check(const HttpRequest& head);
  void take(HttpRequest request, const std::shared_ptr<Exchange>& exchange);
  void generate(HttpRequest& request, const std::shared_ptr<Exchange>& exchange, Opened& with);
  HttpAnswer refusal(const std::string& path, const ApiError& error);
  void log(const HttpRequest& request, int status);

  HttpAnswer health(const HttpRequest&, Opened*) { return json_answer({{"status", "ok"}}); }
  HttpAnswer ready(const HttpRequest&, Opened*) { return json_answer({{"status", "ready"}}); }
  HttpAnswer models(const HttpRequest&, Opened* with);
  HttpAnswer tokenize(const HttpRequest& request, Opened* with);
  HttpAnswer metrics_text(const HttpRequest&, Opened*);

  const ServeOptions options;
  const ApiKeys keys;
  Policies policies;
  const int64_t started =
      std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  Metrics metrics;
  PictureReader::Shared pictures{.named = NamedPictures(options.uuid_bytes)};
  std::unique_ptr<Opened> opened;
  std::atomic<Opened*> ready_model = nullptr;  // what `opened` holds
  std::atomic<bool> is_stopping = false;
  HttpServer http;  // first to go: nobody asks the others any more
};

std::span<const Server::Impl::Route> Server::Impl::routes() {
  static constexpr Route kRoutes[] = {
      {"POST", "/v1/chat/completions", true, true, nullptr}, {"POST", "/v1/completions", true, true, nullptr},
      {"GET", "/v1/models", true, true, &Impl::models},      {"POST", "/tokenize", true, true, &Impl::tokenize},
      {"GET", "/health", false, false, &Impl::health},       {"GET", "/ready", false, true, &Impl::ready},
      {"GET", "/metrics", true, false, &Impl::metrics_text},
  };
  return kRoutes;
}

const Server::Impl::Route* Server::Impl::route_of(const HttpRequest& head) const {
  const auto found =
      std::ranges::find(routes(), head.path, [](const Route& route) { return std::string_view(route.path); });
  if (found == routes().end()) throw ApiError(404, "not_found", "there is no " + log_text(head.path) + " here");
  if (head.method != found->method)
    throw ApiError(405, "method_not_allowed", std::string(found->path) + " takes " + found->method);
  return &*found;
}

// All that can be said before a body is read: refusals, and what has none.
std::optional<HttpAnswer> Server::Impl::check(const HttpRequest& head) {
  try {
    const Route* route = route_of(head);
    if (route->needs_key && !keys.empty() && !keys.accepts(head.header("authorization")))
      throw ApiError(401, "invalid_api_key", "a valid API key is needed: Authorization: Bearer KEY");
    // A page of another origin can make a browser on this machine send requests, but not without this header.
    if (keys.empty() && head.header("origin"))
      throw ApiError(403, "origin_not_allowed", "requests of web pages need an API key");
    if (route->needs_model && (is_stopping || !ready_model))
      throw ApiError(503, is_stopping ? "stopping" : "loading", is_stopping ? "the server stops" : "the model loads");
    if (head.method == "POST") {
      const std::string type = head.header("content-type").value_or("");
      if (type.substr(0, type.find(';')) != "application/json")
        throw ApiError(415, "unsupported_media_type", "Content-Type: expected application/json");
    }
    if (head.method != "GET") return std::nullopt;
    HttpAnswer answer = (this->*route->answer)(head, ready_model);
    metrics.add_http(head.path, answer.status);
    log(head, answer.status);
    return answer;
  } catch (const ApiError& error) {
    log(head, error.status);
    return refusal(error.status == 404 ? "-" : head.path, error);
  }
}

void Server::Impl::take(HttpRequest request, const std::shared_ptr<Exchange>& exchange) {
  std::optional<ApiError> refused;
  try {
    const Route* route = route_of(request);
    Opened* with = ready_model;
    if (!route->answer) return generate(request, exchange, *with);
    HttpAnswer answer = (this->*route->answer)(request, with);
    metrics.add_http(request.path, answer.status);
    log(request, answer.status);
    return exchange->answer(std::move(answer));
  } catch (const ApiError& error) {
    refused = error;
  } catch (const Error& error) {
    refused = ApiError(400, "invalid_request", error.what());
  } catch (const std::bad_alloc&) {
    refused = ApiError(503, "overloaded", "out of memory");
  } catch (const std::exception& error) {
    if (options.log) options.log("failed: " + log_text(error.what()));
    refused = ApiError(500, "internal_error", "the server could not read the request");
  }
  log(request, refused->status);
  exchange->answer(refusal(request.path, *refused));
}

void Server::Impl::generate(HttpRequest& request, const std::shared_ptr<Exchange>& exchange, Opened& with) {
  const AskedOf of{options, pictures, policies};
  Asked asked = request.path == "/v1/completions" ? read_completion_request(request.body, of)
                                                  : read_chat_request(request.body, of);
  request.body.clear();
  request.body.shrink_to_fit();
  std::make_shared<Generation>(with.parts, std::move(asked), exchange, request.path, request.arrived)->start();
  log(request, 200);
}

HttpAnswer Server::Impl::refusal(const std::string& path, const ApiError& error) {
  metrics.add_http(path, error.status);
  return answer_of(error);
}

void Server::Impl::log(const HttpRequest& request, int status) {
  if (options.log)
    options.log(request.peer + " " + log_text(request.method) + " " + log_text(request.path) + " " +
                std::to_string(status));
}

HttpAnswer Server::Impl::models(const HttpRequest&, Opened* with) {
  return json_answer({{"object", "list"},
                      {"data", Json::array({{{"id", options.model_name},
                                             {"object", "model"},
                                             {"created", started},
                                             {"owned_by", "espalier"},
                                             {"max_model_len", with->max_positions}}})}});
}

HttpAnswer Server::Impl::tokenize(const HttpRequest& request, Opened* with) {
  const TokenizeAsked asked = read_tokenize_request(request.body, {options, pictures, policies});
  if (asked.text) {
    const std::vector<int32_t> ids = with->engine.tokenizer().encode(*asked.text, asked.add_special);
    return json_answer({{"count", ids.size()}, {"max_model_len", with->max_positions}, {"tokens", ids}});
  }
  const TokenCounts counts = with->engine.count_tokens(asked.prompt);
  return json_answer({{"count", counts.prompt_tokens},
                      {"max_model_len", with->max_positions},
                      {"tokens_per_image", counts.tokens_per_image}});
}

HttpAnswer Server::Impl::metrics_text(const HttpRequest&, Opened* with) {
  return {.type = "text/plain; version=0.0.4; charset=utf-8",
          .body = metrics.text({.load = with ? with->scheduler.load() : SchedulerLoad(),
                                .kv_bytes_limit = options.kv_bytes,
                                .connections = http.num_connections(),
                                .is_ready = with && !is_stopping}),
          .headers = {}};
}

Server::Server(const ServeOptions& options) : impl_(std::make_unique<Impl>(options)) {
  impl_->http.start();
}

Server::~Server() {
  stop(std::chrono::milliseconds(0));
}

void Server::open(const Engine& engine) {
  // They would be found wrong by every request.
  impl_->policies.check_own_spec(impl_->options.policy);
  impl_->policies.check_own_spec(impl_->options.low_detail);
  impl_->opened = std::make_unique<Opened>(engine, impl_->options, impl_->metrics);
  impl_->ready_model = impl_->opened.get();
}

uint16_t Server::port() const {
  return impl_->http.port();
}

bool Server::stop(std::chrono::milliseconds grace) {
  impl_->is_stopping = true;
  impl_->http.stop_accepting();
  if (impl_->http.wait_until_answered(grace)) return true;
  impl_->http.give_up();
  impl_->http.wait_until_answered(std::chrono::seconds(30));
  return false;
}

}  // namespace espalier::serve
