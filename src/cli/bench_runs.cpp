// SPDX-License-Identifier: Apache-2.0
#include "cli/bench_runs.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <utility>

#include "cli/interrupt.h"

namespace espalier::cli {

namespace {

using Clock = std::chrono::steady_clock;

constexpr double kNoisyScatter = 1.3;

double milliseconds_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

double processor_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + 1e-6 * double(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// A picture with edges and texture; its content does not matter for speed.
std::shared_ptr<const Image> drawn_picture(int64_t seed, int side) {
  Image image{side, side, std::vector<uint8_t>(3 * static_cast<size_t>(side) * static_cast<size_t>(side))};
  for (int y = 0; y < side; ++y)
    for (int x = 0; x < side; ++x)
      for (int c = 0; c < 3; ++c) {
        const double wave =
            std::sin(0.05 * x + double(seed)) + std::cos(0.08 * y - 1.7 * c) + ((x / 40 + y / 56 + seed) % 3 == c);
        image.rgb[3 * (static_cast<size_t>(y) * static_cast<size_t>(side) + static_cast<size_t>(x)) +
                  static_cast<size_t>(c)] = static_cast<uint8_t>(100 + 40 * wave);
      }
  return std::make_shared<const Image>(std::move(image));
}

BenchSample sample_of(const std::vector<Result>& results, const BenchSetting& setting, double until_first,
                      double whole) {
  const auto requests = static_cast<double>(results.size());
  const auto later = static_cast<double>(std::max<int64_t>(1, setting.new_tokens - 1));
  BenchSample sample;
  for (const Result& result : results) {
    sample.encode += result.stats.encode_ms / requests;
    sample.select += result.stats.select_ms / requests;
    sample.prefill += result.stats.prefill_ms / requests;
    sample.per_token += result.stats.decode_ms / later / requests;
  }
  sample.select_prefill = sample.select + sample.prefill;
  sample.first_token = sample.encode + sample.select_prefill;
  if (results.size() > 1) {  // they take turns and share passes: only the clock knows
    sample.first_token = until_first;
    sample.select_prefill = until_first - requests * sample.encode;
  }
  sample.whole = whole;
  return sample;
}

// Throws Interrupted on Ctrl-C.
void run_once(const Engine& engine, const BenchSetting& setting, BenchSeries& series, bool counts) {
  Request request;
  request.prompt = setting.prompt;
  request.policy = series.policy;
  request.custom = series.custom;
  request.options.max_new_tokens = setting.new_tokens;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  const std::vector<Request> requests(static_cast<size_t>(setting.requests), request);
  std::vector<bool> has_first(requests.size(), false);
  double until_first = 0;
  const Clock::time_point begin = Clock::now();
  Callbacks callbacks;
  callbacks.should_cancel = interrupted;
  callbacks.on_token = [&](size_t i, int32_t, const TokenLogprobs*) {
    if (!has_first[i]) until_first = milliseconds_since(begin);
    has_first[i] = true;
  };
  std::vector<Result> results = engine.generate(requests, callbacks);
  const double whole = milliseconds_since(begin);
  for (const Result& result : results)
    if (result.finish_reason == FinishReason::kCancelled) throw Interrupted();
  if (counts) series.samples.push_back(sample_of(results, setting, until_first, whole));
  series.stats = std::move(results.front().stats);
}

}  // namespace

Spread BenchSeries::spread(double BenchSample::*field) const {
  std::vector<double> values;
  for (const BenchSample& s : samples) values.push_back(s.*field);
  return spread_of(std::move(values));
}

double BenchSeries::noise() const {
  return std::max(spread(&BenchSample::first_token).noise(), spread(&BenchSample::per_token).noise());
}

bool BenchSeries::is_noisy() const {
  return std::max(spread(&BenchSample::first_token).scatter, spread(&BenchSample::per_token).scatter) > kNoisyScatter;
}

BenchResult run_bench(const Engine& engine, const BenchSetting& setting, const std::vector<BenchSeries>& policies,
                      const BenchPlan& plan, TerminalProgress& progress) {
  BenchResult result{.series = policies};
  const auto is_known = [&] {
    return std::ranges::all_of(result.series, [&](const BenchSeries& s) { return s.noise() <= plan.max_noise; });
  };
  double wall_ms = 0, processor = 0;
  int64_t done = 0;
  try {
    for (int round = -1; round < plan.repeat || (round < plan.max_repeat && !is_known()); ++round) {
      const int64_t rounds = std::max(plan.repeat, round + 1) + 1;  // the first of them warms up
      const double processor_before = processor_seconds();
      const Clock::time_point begin = Clock::now();
      for (BenchSeries& s : result.series) {
        run_once(engine, setting, s, round >= 0);
        progress.show(setting.name, ++done, rounds * std::ssize(policies));
      }
      if (round < 0) continue;
      wall_ms += milliseconds_since(begin);
      processor += processor_seconds() - processor_before;
      ++result.rounds;
    }
  } catch (const Interrupted&) {
    result.is_complete = false;
    std::erase_if(result.series, [](const BenchSeries& s) { return s.samples.empty(); });
  }
  progress.clear();
  if (wall_ms > 0) result.cpu_per_wall = 1e3 * processor / wall_ms;
  return result;
}

Chat drawn_prompt(int64_t shots, int64_t side) {
  constexpr const char* kQuestion = "what shape is the object in this image?";
  const auto picture = [&](int64_t seed) {
    ImagePart part;
    part.image = drawn_picture(seed, static_cast<int>(side));
    return part;
  };
  std::vector<Example> examples;
  for (int64_t i = 0; i < shots; ++i) examples.push_back({picture(i), kQuestion, "circle"});
  return in_context_chat(examples, picture(shots), kQuestion);
}

}  // namespace espalier::cli
