// SPDX-License-Identifier: Apache-2.0
// Many clients at once, each asking again as soon as it is answered: requests per second, time to the first token and
// the longest pause between two, by the way they are served: `scheduler` (requests join and leave), `calls`
// (Engine::generate from a thread per client) or `batch` (all clients in one call). And the second question over the
// same demonstrations, with a prefix cache. Prints one line of JSON per measurement.
//
//   clients [--model DIR] [--policy SPEC]… [--clients N]… [--way W]… [--rounds R] [--shots S] [--new-tokens T]
//   clients --second-question [--model DIR] [--policy SPEC]…
//   clients --arrival [--model DIR] [--policy SPEC]      what a running answer feels of a prompt that comes
#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "espalier/engine.h"
#include "espalier/error.h"
#include "espalier/memory.h"
#ifndef ESPALIER_WITHOUT_SCHEDULER  // to measure an Espalier before it had one
#include "espalier/scheduler.h"
#endif

namespace espalier {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::shared_ptr<const Image> picture(uint32_t seed) {
  auto image = std::make_shared<Image>();
  image->width = image->height = 336;
  image->rgb.resize(336 * 336 * 3);
  std::mt19937 random(seed);
  for (uint8_t& byte : image->rgb) byte = static_cast<uint8_t>(random());
  return image;
}

// Demonstrations of their own for each `set`; `question` also decides the query's picture.
Chat prompt_of(int shots, uint32_t set, uint32_t question) {
  std::vector<Example> examples;
  for (int i = 0; i < shots; ++i) {
    Example& example = examples.emplace_back();
    example.image.image = picture(1000 * set + static_cast<uint32_t>(i));
    example.question = "What is shown here?";
    example.answer = "number " + std::to_string(i);
  }
  ImagePart query;
  query.image = picture(500'000 + question);
  return in_context_chat(examples, query, "What is shown here, in question " + std::to_string(question) + "?");
}

struct Options {
  std::string model;
  std::vector<std::string> policies = {"none", "catp:keep_ratio=2/9"}, ways;
  std::vector<int> clients = {1, 2, 4, 8};
  int rounds = 3, shots = 4, threads = 0;
  int64_t new_tokens = 32, image_cache = int64_t{1} << 30;
  std::string dtype = "bf16";
  bool second_question = false, arrival = false;
};

// What clients saw; from any thread.
class Seen {
 public:
  struct Answer {
    Clock::time_point asked = Clock::now(), last = {};
    double first_token = 0, longest_pause = 0;
    void piece() {
      const Clock::time_point now = Clock::now();
      if (last == Clock::time_point())
        first_token = std::chrono::duration<double>(now - asked).count();
      else
        longest_pause = std::max(longest_pause, std::chrono::duration<double>(now - last).count());
      last = now;
    }
  };
  void add(const Answer& answer) {
    const std::scoped_lock lock(mutex_);
    first_token_.push_back(answer.first_token);
    longest_pause_ = std::max(longest_pause_, answer.longest_pause);
  }
  double median_first_token() {
    std::ranges::sort(first_token_);
    return first_token_.empty() ? 0 : first_token_[first_token_.size() / 2];
  }
  double longest_pause() const { return longest_pause_; }

 private:
  std::mutex mutex_;
  std::vector<double> first_token_;
  double longest_pause_ = 0;
};

Request request_of(const Options& options, const std::string& policy, Chat chat) {
  Request request;
  request.prompt = std::move(chat);
  request.policy = policy;
  request.options.max_new_tokens = options.new_tokens;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  return request;
}

Callbacks watching(std::vector<Seen::Answer>& answers) {
  Callbacks callbacks;
  callbacks.on_text = [&answers](size_t i, std::string_view) {
    answers[i].piece();
    return Continue::kGo;
  };
  return callbacks;
}

// `rounds` requests of each client; seconds for all.
double serve(const Engine& engine, const Options& options, const std::string& policy, const std::string& way,
             int clients, Seen& seen) {
  std::vector<Request> requests;  // of client c in round r: [r * clients + c]
  for (int i = 0; i < clients * options.rounds; ++i)
    requests.push_back(request_of(
        options, policy, prompt_of(options.shots, static_cast<uint32_t>(i % clients), static_cast<uint32_t>(i))));
  const Clock::time_point start = Clock::now();
  if (way == "batch") {
    for (int r = 0; r < options.rounds; ++r) {
      std::vector<Seen::Answer> answers(static_cast<size_t>(clients));
      engine.generate(std::span(requests).subspan(static_cast<size_t>(r * clients), static_cast<size_t>(clients)),
                      watching(answers));
      for (const Seen::Answer& answer : answers) seen.add(answer);
    }
    return seconds_since(start);
  }
#ifndef ESPALIER_WITHOUT_SCHEDULER
  Scheduler scheduler(engine);
#endif
  std::vector<std::thread> threads;
  for (int c = 0; c < clients; ++c)
    threads.emplace_back([&, c] {
      for (int r = 0; r < options.rounds; ++r) {
        const Request& request = requests[static_cast<size_t>(r * clients + c)];
        std::vector<Seen::Answer> answer(1);
        if (way == "calls") {
          engine.generate(request, watching(answer));
        } else {
#ifndef ESPALIER_WITHOUT_SCHEDULER
          scheduler.submit(request, watching(answer)).result();
#endif
        }
        seen.add(answer[0]);
      }
    });
  for (std::thread& thread : threads) thread.join();
  return seconds_since(start);
}

Engine load(const Options& options, int64_t prefix_cache) {
  EngineOptions engine_options;
  engine_options.dtype = options.dtype == "f32" ? ComputeDtype::kFloat32 : ComputeDtype::kBFloat16;
  engine_options.threads = options.threads;
  engine_options.image_cache_bytes = options.image_cache;
#ifndef ESPALIER_WITHOUT_SCHEDULER
  engine_options.prefix_cache_bytes = prefix_cache;
#else
  (void)prefix_cache;
#endif
  return Engine::load(options.model, engine_options);
}

void measure_clients(const Options& options) {
  const Engine engine = load(options, 0);
  for (const std::string& policy : options.policies) {
    engine.generate(request_of(options, policy, prompt_of(options.shots, 0, 0)));  // warm
    for (const int clients : options.clients)
      for (const std::string& way : options.ways) {
        Seen seen;
        const double seconds = serve(engine, options, policy, way, clients, seen);
        std::printf(
            "{\"policy\":\"%s\",\"way\":\"%s\",\"clients\":%d,\"requests\":%d,\"seconds\":%.3f,"
            "\"requests_per_s\":%.4f,\"first_token_median_s\":%.4f,\"longest_pause_s\":%.4f}\n",
            policy.c_str(), way.c_str(), clients, clients * options.rounds, seconds, clients * options.rounds / seconds,
            seen.median_first_token(), seen.longest_pause());
        std::fflush(stdout);
      }
  }
}

#ifndef ESPALIER_WITHOUT_SCHEDULER
// Select and prefill of the first question, then of another over the same demonstrations, in turn with the unpruned
// first.
void measure_second_question(Options options) {
  options.new_tokens = 1;
  const auto time_of = [&](const std::string& policy, uint32_t set, bool second) {
    const Engine engine = load(options, int64_t{4} << 30);
    engine.generate(request_of(options, policy, prompt_of(1, 77, 77)));  // warm
    Result result = engine.generate(request_of(options, policy, prompt_of(options.shots, set, 1)));
    if (second) result = engine.generate(request_of(options, policy, prompt_of(options.shots, set, 2)));
    return result.stats;
  };
  for (const std::string& policy : options.policies)
    for (int round = 0; round < options.rounds; ++round) {
      const Stats first = time_of("none", 1, false), second = time_of(policy, 1, true);
      const double whole = first.select_ms + first.prefill_ms, rest = second.select_ms + second.prefill_ms;
      std::printf(
          "{\"policy\":\"%s\",\"round\":%d,\"first_unpruned_ms\":%.2f,\"second_ms\":%.2f,\"ratio\":%.4f,"
          "\"reused_tokens\":%lld,\"prompt_tokens\":%lld}\n",
          policy.c_str(), round, whole, rest, rest / whole, static_cast<long long>(second.reused_tokens),
          static_cast<long long>(second.prompt_tokens));
      std::fflush(stdout);
    }
}

// The longest pause between two tokens of a running answer while a prompt arrives, in layers of that prompt's prefill.
void measure_arrival(const Options& options) {
  const Engine engine = load(options, 0);
  const std::string& policy = options.policies[0];
  engine.generate(request_of(options, policy, prompt_of(options.shots, 0, 0)));  // warm
  for (int round = 0; round < options.rounds; ++round) {
    Scheduler scheduler(engine);
    Request runs = request_of(options, policy, prompt_of(0, 9, 9));
    std::mutex mutex;
    std::vector<Clock::time_point> tokens;
    Callbacks callbacks;
    callbacks.on_progress = [&](std::string_view stage, int64_t, int64_t) {
      if (stage != "decode") return;
      const std::scoped_lock lock(mutex);
      tokens.push_back(Clock::now());
    };
    runs.options.max_new_tokens = 4000;
    Ticket running = scheduler.submit(runs, callbacks);
    const auto count = [&] {
      const std::scoped_lock lock(mutex);
      return tokens.size();
    };
    while (count() < 20) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const size_t before = count();
    const Request arrives = request_of(options, policy, prompt_of(options.shots, 1, static_cast<uint32_t>(round)));
    const Clock::time_point asked = Clock::now();
    const Result result = scheduler.submit(arrives).result();
    running.cancel();
    running.result();
    std::vector<double> pauses;
    for (size_t i = before; i + 1 < tokens.size(); ++i)
      if (tokens[i] > asked)
        pauses.push_back(std::chrono::duration<double, std::milli>(tokens[i + 1] - tokens[i]).count());
    std::ranges::sort(pauses);
    const double layer = result.stats.prefill_ms / static_cast<double>(result.stats.tokens_per_layer.size());
    std::printf(
        "{\"policy\":\"%s\",\"round\":%d,\"prompt_tokens\":%lld,\"prefill_ms\":%.1f,\"layer_ms\":%.2f,"
        "\"pauses\":%zu,\"median_pause_ms\":%.2f,\"longest_pause_ms\":%.2f,\"in_layers\":%.2f}\n",
        policy.c_str(), round, static_cast<long long>(result.stats.prompt_tokens), result.stats.prefill_ms, layer,
        pauses.size(), pauses[pauses.size() / 2], pauses.back(), pauses.back() / layer);
    std::fflush(stdout);
  }
}
#endif

}  // namespace
}  // namespace espalier

int main(int argc, char** argv) {
  espalier::Options options;
  CLI::App app("Serves many clients at once and prints what they saw.");
  app.add_option("--model", options.model)->required();
  app.add_option("--policy", options.policies)->allow_extra_args(false);
  app.add_option("--clients", options.clients)->allow_extra_args(false);
  app.add_option("--way", options.ways)->allow_extra_args(false)->check(CLI::IsMember({"scheduler", "calls", "batch"}));
  app.add_option("--rounds", options.rounds);
  app.add_option("--shots", options.shots);
  app.add_option("--new-tokens", options.new_tokens);
  app.add_option("--threads", options.threads);
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--image-cache", options.image_cache);
  app.add_flag("--second-question", options.second_question);
  app.add_flag("--arrival", options.arrival);
  CLI11_PARSE(app, argc, argv);
  if (options.ways.empty()) options.ways = {"scheduler"};
  espalier::keep_freed_memory();
  try {
    if (!options.second_question && !options.arrival) espalier::measure_clients(options);
#ifndef ESPALIER_WITHOUT_SCHEDULER
    if (options.second_question) espalier::measure_second_question(options);
    if (options.arrival) espalier::measure_arrival(options);
#endif
  } catch (const std::exception& error) {
    std::fprintf(stderr, "clients: %s\n", error.what());
    return 2;
  }
}
