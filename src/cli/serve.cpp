// SPDX-License-Identifier: Apache-2.0
#include "serve/server.h"

#include <sys/resource.h>

#include <CLI/App.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "cli/bundled_model.h"
#include "cli/commands.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/standard_output.h"
#include "cli/terminal_progress.h"

namespace espalier::cli {

namespace {

constexpr int64_t kMostBytes = int64_t{1} << 50;

struct ServeCommand {
  ModelOptions model;
  PromptOptions prompt;
  serve::ServeOptions serve;
  int64_t grace = 30;  // seconds
  bool logs_requests = false;
};

void add_bytes(CLI::App& app, const char* name, int64_t low, int64_t& into, const std::string& description) {
  add_integer(
      app, name, {low, kMostBytes}, [&into](int64_t n) { into = n; }, description)
      ->type_name("BYTES");
}

void add_seconds(CLI::App& app, const char* name, std::chrono::milliseconds& into, const std::string& description) {
  add_integer(
      app, name, {1, 1'000'000}, [&into](int64_t n) { into = std::chrono::seconds(n); }, description)
      ->type_name("SECONDS");
}

void add_limits(CLI::App& app, serve::ServeOptions& options) {
  add_integer(
      app, "--max-queue", {1, 1'000'000}, [&options](int64_t n) { options.max_queue = n; },
      "Requests that may wait; one more is answered with 429 (256)");
  add_bytes(app, "--kv", 0, options.kv_bytes,
            "Keys and values of all running requests; others wait; 0 for no limit (4 GiB)");
  add_integer(
      app, "--max-body", {1024, kMostBytes},
      [&options](int64_t n) { options.http.body_bytes = static_cast<size_t>(n); }, "Largest body of a request (32 MiB)")
      ->type_name("BYTES");
  add_bytes(app, "--max-text", 1, options.limits.text_bytes, "All texts of a request (1 MiB)");
  add_integer(
      app, "--max-images", {0, 10'000}, [&options](int64_t n) { options.limits.images = n; },
      "Pictures of a request (64)");
  add_integer(
      app, "--max-pixels", {1, 1'000'000'000}, [&options](int64_t n) { options.limits.pixels = n; },
      "Pixels of all pictures of a request, decoded (64000000)");
  add_integer(
      app, "--max-connections", {1, 100'000},
      [&options](int64_t n) { options.http.connections = static_cast<size_t>(n); }, "Open connections (2048)");
  add_seconds(app, "--header-time", options.http.header_time, "For a request's head (10)");
  add_seconds(app, "--body-time", options.http.body_time, "For a request's body (60)");
  add_seconds(app, "--idle-time", options.http.idle_time, "Between the requests of a connection (60)");
  add_seconds(app, "--write-time", options.http.write_time, "For a client to take 64 KiB of its answer (30)");
  add_seconds(app, "--answer-time", options.http.answer_time, "For a whole answer, waiting included (600)");
}

void add_access(CLI::App& app, serve::ServeOptions& options) {
  app.add_option("--host", options.host, "Address to listen on; beyond this machine only with a key")
      ->capture_default_str();
  add_integer(
      app, "--port", {0, 65535}, [&options](int64_t n) { options.port = static_cast<uint16_t>(n); },
      "Port; 0 takes a free one (8080)");
  app.add_option("--api-key-file", options.api_key_file,
                 "Keys, one per line; requests must bring one: Authorization: Bearer KEY")
      ->type_name("FILE");
  app.add_flag("--no-auth", options.no_auth, "Listen beyond this machine without a key");
  app.add_option("--allow-images", options.allow_images, "Folder below which requests may name pictures by file:")
      ->type_name("DIR");
  app.add_flag("--isolate-users", options.isolate_users,
               "Requests of different `user` share no cached beginnings and no uuids");
}

// A connection is a descriptor.
void allow_descriptors(size_t connections) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, std::max<rlim_t>(limit.rlim_cur, connections + 256));
  setrlimit(RLIMIT_NOFILE, &limit);
}

std::string name_of(const std::filesystem::path& folder) {
  const std::filesystem::path whole = std::filesystem::absolute(folder).lexically_normal();
  return (whole.has_filename() ? whole : whole.parent_path()).filename().string();
}

ExitStatus run_server(const ServeCommand& command) {
  serve::ServeOptions options = command.serve;
  options.policy = command.prompt.policy;
  options.plugins.assign(command.prompt.plugins.files.begin(), command.prompt.plugins.files.end());
  if (options.model_name.empty())
    options.model_name = name_of(command.model.model.empty() ? bundled_model() : command.model.model);
  if (command.logs_requests)
    options.log = [](std::string_view line) {
      std::fprintf(stderr, "espalier: %.*s\n", static_cast<int>(line.size()), line.data());
    };
  catch_stops();
  std::signal(SIGPIPE, SIG_IGN);
  allow_descriptors(options.http.connections);
  std::optional<Engine> engine;
  serve::Server server(options);  // an address that is taken is known before anything is loaded
  TerminalProgress progress;
  engine.emplace(load_engine(command.model, progress));
  server.open(*engine);
  const bool is_ipv6 = options.host.find(':') != std::string::npos;
  print("espalier: " + options.model_name + " answers at http://" +
        (is_ipv6 ? "[" + options.host + "]" : options.host) + ":" + std::to_string(server.port()) + "\n");
  while (!interrupted()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  server.stop(std::chrono::seconds(command.grace));
  return stopped_by_manager() ? kDone : kInterrupted;
}

}  // namespace

Run add_serve(CLI::App& app) {
  const auto options = std::make_shared<ServeCommand>();
  options->serve.kv_bytes = int64_t{4} << 30;
  options->serve.prefix_cache_bytes = int64_t{256} << 20;
  options->model.image_cache_bytes = int64_t{64} << 20;
  add_model_options(app, options->model);
  app.add_option("--model-name", options->serve.model_name,
                 "What requests call the model; without it the name of its folder")
      ->type_name("NAME");
  add_policy_option(app, options->prompt);
  app.add_option("--low-detail", options->serve.low_detail, "What is dropped of a picture whose detail is low")
      ->capture_default_str()
      ->type_name("SPEC");
  add_access(app, options->serve);
  add_bytes(app, "--prefix-cache", 0, options->serve.prefix_cache_bytes,
            "Beginnings of prompts, which are computed once (256 MiB)");
  add_bytes(app, "--image-cache", 0, options->model.image_cache_bytes,
            "What the vision tower made of pictures (64 MiB)");
  add_bytes(app, "--uuid-pictures", 0, options->serve.uuid_bytes,
            "Pictures that requests may name again by their uuid (256 MiB)");
  add_limits(app, options->serve);
  add_integer(
      app, "--grace", {0, 86'400}, [options](int64_t n) { options->grace = n; },
      "When told to stop: for the requests that run (30)")
      ->type_name("SECONDS");
  app.add_flag("--log-requests", options->logs_requests, "A line on stderr for each request");
  app.footer(
      "SIGTERM and SIGINT stop it: no new requests, those that run end within --grace. docs/serve.md says what can be\n"
      "asked, with examples.\n\n"
      "  espalier serve --model llava-1.5-7b-hf --policy catp:keep_ratio=2/9\n"
      "  curl http://127.0.0.1:8080/v1/chat/completions \\\n"
      "      -H 'Content-Type: application/json' \\\n"
      "      -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is an espalier?\"}]}'");
  return [options] { return run_server(*options); };
}

}  // namespace espalier::cli
