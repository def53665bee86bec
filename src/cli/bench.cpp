// SPDX-License-Identifier: Apache-2.0
// `espalier bench`: in-context prompts, several policies in turn, medians beside what the machine could do at best.
// Policies are interleaved, so that a drift of the machine hits all of them alike.
#include <CLI/App.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/output_file.h"
#include "cli/commands.h"
#include "cli/cost_table.h"
#include "cli/interrupt.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "runtime/engine_impl.h"
#include "runtime/machine_rates.h"

namespace espalier::cli {

namespace {

struct Options {
  ModelOptions model;
  std::vector<std::string> policies = {"none", "catp:keep_ratio=2/9", "fastv:keep_ratio=2/9", "random:keep_ratio=2/9"};
  std::vector<int> shots = {4};
  int repeat = 5;
  int64_t new_tokens = 8;
  std::string json;
  std::string markdown;
};

// A picture with edges and texture; its content does not matter for speed.
std::shared_ptr<const Image> synthetic_picture(int seed) {
  constexpr int kSide = 336;
  Image image{kSide, kSide, std::vector<uint8_t>(3 * kSide * kSide)};
  for (int y = 0; y < kSide; ++y)
    for (int x = 0; x < kSide; ++x)
      for (int c = 0; c < 3; ++c) {
        const double wave =
            std::sin(0.05 * x + seed) + std::cos(0.08 * y - 1.7 * c) + ((x / 40 + y / 56 + seed) % 3 == c);
        image.rgb[static_cast<size_t>(3 * (y * kSide + x) + c)] = static_cast<uint8_t>(100 + 40 * wave);
      }
  return std::make_shared<const Image>(std::move(image));
}

Chat in_context_prompt(int shots) {
  std::vector<Example> examples;
  for (int i = 0; i < shots; ++i)
    examples.push_back(
        {{.image = synthetic_picture(i), .pins = {}}, "what shape is the object in this image?", "circle"});
  return in_context_chat(examples, {.image = synthetic_picture(shots), .pins = {}},
                         "what shape is the object in this image?");
}

struct Sample {
  double encode, select, prefill, per_token;
  double to_first_token() const { return select + prefill; }  // behind encode
};

struct Series {
  std::string policy;
  std::vector<Sample> samples;
  Stats stats;  // of the last run: counts do not change between runs

  double quantile(double Sample::*field, double q) const {
    std::vector<double> values;
    for (const Sample& s : samples) values.push_back(s.*field);
    return pick(std::move(values), q);
  }
  // Where a policy makes pictures smaller, encode too is part of what it saves.
  double first_token_with_encode() const {
    std::vector<double> values;
    for (const Sample& s : samples) values.push_back(s.encode + s.to_first_token());
    return pick(std::move(values), 0.5);
  }
  double first_token(double q) const {
    std::vector<double> values;
    for (const Sample& s : samples) values.push_back(s.to_first_token());
    return pick(std::move(values), q);
  }

 private:
  static double pick(std::vector<double> values, double q) {
    std::ranges::sort(values);
    return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
  }
};

Series run_once(const Engine& engine, const Options& options, int shots, Series series, bool counts) {
  Request request{
      .prompt = in_context_prompt(shots), .policy = series.policy, .custom = {}, .options = {}, .trace = false};
  request.options.max_new_tokens = options.new_tokens;
  request.options.greedy = true;
  request.options.ignore_eos = true;
  Callbacks callbacks;
  callbacks.should_cancel = [] { return interrupted(); };
  Result result = engine.generate(request, callbacks);
  if (result.finish_reason == FinishReason::kCancelled) throw Interrupted();
  const double later = std::max<double>(1, static_cast<double>(options.new_tokens - 1));
  if (counts)
    series.samples.push_back(
        {result.stats.encode_ms, result.stats.select_ms, result.stats.prefill_ms, result.stats.decode_ms / later});
  series.stats = std::move(result.stats);
  return series;
}

nlohmann::ordered_json to_json(const Series& s, const Options& options, int shots, const MachineRates& rates) {
  const auto summary = [&](double Sample::*field) {
    return nlohmann::ordered_json{
        {"median", s.quantile(field, 0.5)}, {"min", s.quantile(field, 0)}, {"max", s.quantile(field, 1)}};
  };
  return {{"policy", s.policy},
          {"shots", shots},
          {"device", options.model.device},
          {"decode_graphs", !options.model.no_decode_graphs},
          {"repeat", options.repeat},
          {"prompt_tokens", s.stats.prompt_tokens},
          {"tokens_per_layer", s.stats.tokens_per_layer},
          {"time_ms",
           {{"encode", summary(&Sample::encode)},
            {"select", summary(&Sample::select)},
            {"prefill", summary(&Sample::prefill)},
            {"decode_per_token", summary(&Sample::per_token)},
            {"first_token", {{"median", s.first_token(0.5)}, {"min", s.first_token(0)}, {"max", s.first_token(1)}}}}},
          {"prefill_flops", s.stats.prefill_flops},
          {"prefill_flops_unpruned", s.stats.prefill_flops_unpruned},
          {"kv_bytes", s.stats.kv_bytes},
          {"peak_memory_bytes", s.stats.peak_memory_bytes},
          {"threads", s.stats.threads},
          {"kernels", std::map<std::string, std::string>(s.stats.kernels.begin(), s.stats.kernels.end())},
          {"ceilings",
           {{"matrix_flops_per_s", rates.matrix_flops},
            {"read_bytes_per_s", rates.read_bytes},
            {"weight_bytes_per_token", rates.bytes_a_token}}}};
}

// speed-up: of select + prefill against the first policy. promise: its ceiling, FLOPs of the first against this one.
// yield: the first over the second. Behind prefill its share of the matrix rate, behind ms/tok the share of the reading
// rate at which weights and cache come in.
void print_table(const std::vector<Series>& series, const MachineRates& rates) {
  std::printf("%-36s %7s %8s %8s %9s %5s %9s %8s %5s %8s %8s %7s\n", "policy", "tokens", "encode", "select", "prefill",
              "share", "tok 1 ms", "ms/tok", "share", "speed-up", "promise", "yield");
  const Series& first = series.front();
  for (const Series& s : series) {
    const double speed_up = first.first_token(0.5) / s.first_token(0.5);
    const double promise = first.stats.prefill_flops / s.stats.prefill_flops;
    const double prefill = s.quantile(&Sample::prefill, 0.5), per_token = s.quantile(&Sample::per_token, 0.5);
    const double flops = s.stats.prefill_flops / (1e-3 * prefill);
    const auto read = static_cast<double>(rates.bytes_a_token + s.stats.kv_bytes) / (1e-3 * per_token);
    std::printf("%-36s %7ld %8.1f %8.2f %9.1f %4.0f%% %9.1f %8.2f %4.0f%% %7.2fx %7.2fx %7.3f\n", s.policy.c_str(),
                static_cast<long>(s.stats.tokens_per_layer.back()), s.quantile(&Sample::encode, 0.5),
                s.quantile(&Sample::select, 0.5), prefill, 100 * flops / rates.matrix_flops, s.first_token(0.5),
                per_token, per_token > 0 ? 100 * read / rates.read_bytes : 0.0, speed_up, promise, speed_up / promise);
  }
}

// Every op of any of the runs, with all kernels that served it.
void print_kernels(const std::vector<Series>& series) {
  std::map<std::string, std::string> kernels;
  for (const Series& s : series)
    for (const auto& [op, kernel] : s.stats.kernels) {
      std::string& known = kernels[op];
      if (known.find(kernel) == std::string::npos) known += (known.empty() ? "" : " + ") + kernel;
    }
  std::printf("kernels:");
  const char* comma = " ";
  for (const auto& [op, kernel] : kernels)
    std::printf("%s%s %s", std::exchange(comma, ", "), op.c_str(), kernel.c_str());
  std::printf("\n");
}

std::vector<Series> run_shots(const Engine& engine, const Options& options, int shots, TerminalProgress& progress) {
  std::vector<Series> series;
  for (const std::string& policy : options.policies) series.push_back({.policy = policy, .samples = {}, .stats = {}});
  for (int round = -1; round < options.repeat; ++round) {  // the first round warms up
    for (Series& s : series) s = run_once(engine, options, shots, std::move(s), round >= 0);
    progress.show("bench", round + 2, options.repeat + 1);
  }
  progress.clear();
  return series;
}

// "all" becomes every policy that the model runs.
std::vector<std::string> expand_policies(const std::vector<std::string>& named, const ModelFacts& model,
                                         std::vector<std::string>& left_out) {
  std::vector<std::string> policies;
  for (const std::string& spec : named) {
    if (spec != "all") {
      policies.push_back(spec);
      std::erase_if(left_out,
                    [&](const std::string& line) { return line.starts_with(spec.substr(0, spec.find(':')) + " "); });
      continue;
    }
    const std::vector<std::string> all = every_policy(model, left_out);
    policies.insert(policies.end(), all.begin(), all.end());
  }
  return policies;
}

std::string cost_text(const Engine& engine, const Options& options, const std::vector<Series>& series, int shots,
                      const std::vector<std::string>& left_out) {
  const Stats& stats = series.front().stats;
  const std::string heading = "`" + engine.folder().filename().string() + "`, " + std::to_string(shots) + " shots, " +
                              std::to_string(stats.image_tokens.size()) + " images, " +
                              std::to_string(stats.prompt_tokens) + " tokens; " + options.model.device + ", " +
                              std::to_string(stats.threads) + " threads; medians of " + std::to_string(options.repeat) +
                              " interleaved runs.";
  std::vector<CostRow> rows;
  for (const Series& s : series)
    rows.push_back({s.policy, s.stats, s.first_token_with_encode(), s.quantile(&Sample::select, 0.5)});
  return cost_table(heading, rows, left_out);
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  if (file.empty()) return;
  OutputFile out(file);
  out.write(text);
  out.commit();
}

ExitStatus bench(Options options) {
  for (const std::string& file : {options.json, options.markdown})
    if (!file.empty()) check_output_folder(file);
  catch_interrupts();
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  progress.clear();
  std::vector<std::string> left_out;
  options.policies = expand_policies(options.policies, engine.impl().model.facts, left_out);
  const MachineRates rates = measure_rates(engine);
  std::string lines, costs;
  for (size_t i = 0; i < options.shots.size(); ++i) {
    const int shots = options.shots[i];
    const std::vector<Series> series = run_shots(engine, options, shots, progress);
    if (i == 0) {
      std::printf(
          "%d threads, medians of %d interleaved runs, times in ms; matrix rate %.0f GFLOP/s, reading %.1f GB/s\n",
          series[0].stats.threads, options.repeat, rates.matrix_flops * 1e-9, rates.read_bytes * 1e-9);
      print_kernels(series);
    }
    std::printf("%d shots, %ld prompt tokens\n", shots, static_cast<long>(series[0].stats.prompt_tokens));
    print_table(series, rates);
    std::fflush(stdout);
    for (const Series& s : series) lines += to_json(s, options, shots, rates).dump() + "\n";
    costs += (i == 0 ? "" : "\n") + cost_text(engine, options, series, shots, left_out);
  }
  write_text(options.json, lines);
  write_text(options.markdown, costs);
  return kDone;
}

// "1,2,4" -> {1, 2, 4}.
std::vector<int> read_shots(const std::string& text) {
  constexpr int kMostShots = 64;
  std::vector<int> shots;
  const char *at = text.data(), *end = text.data() + text.size();
  while (true) {
    int value = -1;
    const auto [last, code] = std::from_chars(at, end, value);
    if (code != std::errc() || value < 0 || value > kMostShots || (last != end && *last != ','))
      throw Error("--shots: expected whole numbers from 0 up to " + std::to_string(kMostShots) +
                  ", separated by commas, got \"" + text + "\"");
    shots.push_back(value);
    if (last == end) return shots;
    at = last + 1;
  }
}

}  // namespace

Run add_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  app.add_option(
         "--policy", options->policies,
         "Policy to time; may be given several times, and the first is what speed-ups refer to. all: every policy that "
         "the model runs, unpruned first, at 2/9 or with its own schedule")
      ->type_name("SPEC");
  app.add_option_function<std::string>(
         "--shots", [=](const std::string& text) { options->shots = read_shots(text); },
         "In-context examples, several numbers separated by commas (4)")
      ->type_name("N,…");
  add_integer(
      app, "--repeat", {1, 1000}, [=](int64_t n) { options->repeat = static_cast<int>(n); }, "Counted runs (5)");
  add_integer(
      app, "--new-tokens", {1, 4096}, [=](int64_t n) { options->new_tokens = n; }, "Tokens to generate (8)");
  app.add_option("--json", options->json, "Also write one JSON line per policy and number of shots to this file")
      ->type_name("FILE");
  app.add_option(
         "--markdown", options->markdown,
         "Also write a table to this file: tokens by layer, FLOPs, time to first token and of selection, KV bytes")
      ->type_name("FILE");
  app.footer(
      "Times an in-context prompt of drawn pictures, policies in turn, medians of the counted runs.\n\n"
      "  espalier bench --policy none --policy catp:keep_ratio=2/9 --shots 0,4,8\n"
      "  espalier bench --policy all --markdown costs.md");
  return [=] { return bench(*options); };
}

}  // namespace espalier::cli
