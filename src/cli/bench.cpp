// SPDX-License-Identifier: Apache-2.0
// `espalier bench`: a prompt under several policies in turn, at the points of several axes, beside what the machine
// could do at best.
#include <CLI/App.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cli/bench_runs.h"
#include "cli/bench_table.h"
#include "cli/commands.h"
#include "cli/cost_table.h"
#include "cli/interrupt.h"
#include "cli/json_output.h"
#include "cli/number_option.h"
#include "cli/prompt_options.h"
#include "cli/standard_output.h"
#include "cli/terminal_progress.h"
#include "espalier/error.h"
#include "runtime/engine_impl.h"
#include "runtime/result_json.h"

namespace espalier::cli {

namespace {

struct Options {
  ModelOptions model;
  PromptOptions prompt;
  std::vector<std::string> policies = {"none", "catp:keep_ratio=2/9", "fastv:keep_ratio=2/9", "random:keep_ratio=2/9"};
  std::optional<std::vector<int64_t>> shots, sides;  // of the drawn prompt
  std::vector<int64_t> requests = {1}, new_tokens = {8};
  BenchPlan plan;
  std::optional<int> max_repeat;
  JsonOutput json;
  std::filesystem::path markdown;
};

bool has_own_prompt(const PromptOptions& prompt) {
  return prompt.prompt || prompt.raw_prompt || !prompt.chats.empty() || !prompt.images.empty();
}

// The prompts to measure; their `requests` and `new_tokens` are still to come.
std::vector<BenchSetting> prompts_of(const Options& options) {
  std::vector<BenchSetting> settings;
  if (has_own_prompt(options.prompt)) {
    if (options.shots || options.sides)
      throw Error("--shots and --side are of the drawn prompt; --chat, --prompt and --raw-prompt bring their own");
    std::vector<Prompt> prompts = read_prompts(options.prompt);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const std::string name = options.prompt.chats.empty() ? "own prompt" : options.prompt.chats[i];
      settings.push_back({.name = name, .prompt = std::move(prompts[i])});
    }
    return settings;
  }
  for (const int64_t side : options.sides.value_or(std::vector<int64_t>{336}))
    for (const int64_t shots : options.shots.value_or(std::vector<int64_t>{4}))
      settings.push_back({.name = std::to_string(shots) + (shots == 1 ? " shot" : " shots"),
                          .prompt = drawn_prompt(shots, side),
                          .shots = shots,
                          .side = side});
  return settings;
}

std::vector<BenchSetting> settings_of(const Options& options) {
  std::vector<BenchSetting> settings;
  for (const BenchSetting& prompt : prompts_of(options))
    for (const int64_t requests : options.requests)
      for (const int64_t new_tokens : options.new_tokens) {
        BenchSetting& setting = settings.emplace_back(prompt);
        setting.requests = requests;
        setting.new_tokens = new_tokens;
      }
  return settings;
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

std::string cost_text(const Engine& engine, const Options& options, const BenchSetting& setting,
                      const BenchResult& result, const std::vector<std::string>& left_out) {
  const Stats& stats = result.series.front().stats;
  const std::string heading = "`" + engine.folder().filename().string() + "`, " + setting.name + ", " +
                              std::to_string(stats.image_tokens.size()) + " images, " +
                              std::to_string(stats.prompt_tokens) + " tokens; " + options.model.device + ", " +
                              std::to_string(stats.threads) + " threads; medians of " + std::to_string(result.rounds) +
                              " interleaved runs.";
  std::vector<CostRow> rows;
  for (const BenchSeries& s : result.series)
    rows.push_back(
        {s.policy, s.stats, s.spread(&BenchSample::first_token).median, s.spread(&BenchSample::select).median});
  return cost_table(heading, rows, left_out);
}

double load_average() {
  double minute = 0;
  return ::getloadavg(&minute, 1) == 1 ? minute : 0;
}

ExitStatus bench(Options options) {
  check_outputs(options.model, options.prompt, {options.json.file(), options.markdown});
  options.plan.max_repeat = options.max_repeat.value_or(3 * options.plan.repeat);
  if (options.plan.max_repeat < options.plan.repeat)
    throw Error("--max-repeat: expected --repeat (" + std::to_string(options.plan.repeat) + ") or more, got " +
                std::to_string(options.plan.max_repeat));
  for (const std::string& spec : options.policies)
    if (spec != "all") read_policy(options.prompt.plugins, spec);  // complains before a model is loaded
  const std::vector<BenchSetting> settings = settings_of(options);
  catch_interrupts();
  BenchMachine machine{.load_average = load_average(),
                       .processors = static_cast<int>(std::thread::hardware_concurrency())};
  TerminalProgress progress;
  const Engine engine = load_engine(options.model, progress);
  std::vector<std::string> left_out;
  std::vector<BenchSeries> policies;
  for (const std::string& spec : expand_policies(options.policies, engine.impl().model.facts, left_out))
    policies.push_back({.policy = spec, .custom = read_policy(options.prompt.plugins, spec)});
  machine.rates = measure_rates(engine);
  nlohmann::ordered_json head = json_head(engine);
  head["decode_graphs"] = !options.model.no_decode_graphs;
  const bool shows_text = !options.json.replaces_text();
  std::string lines, costs;
  size_t finished = 0;
  for (const BenchSetting& setting : settings) {
    const BenchResult result = run_bench(engine, setting, policies, options.plan, progress);
    if (!result.series.empty()) {
      if (shows_text && lines.empty()) print(bench_heading(result, machine));
      if (shows_text) print(bench_table(setting, result, machine));
      costs += (costs.empty() ? "" : "\n") + cost_text(engine, options, setting, result, left_out);
      lines += bench_json(setting, result, machine, head);
    }
    if (!result.is_complete) break;
    ++finished;
  }
  if (shows_text && !lines.empty()) print("\n" + bench_legend());
  if (finished < settings.size())
    std::fprintf(stderr, "espalier: interrupted; what was measured is kept: %zu of %zu settings whole\n", finished,
                 settings.size());
  if (!lines.empty()) options.json.write(lines);
  if (!options.markdown.empty() && !costs.empty()) write_text(options.markdown, costs);
  return finished < settings.size() ? kInterrupted : kDone;
}

void add_axes(CLI::App& app, Options& options) {
  add_integers(
      app, "--shots", {0, 64}, [&options](std::vector<int64_t> n) { options.shots = std::move(n); },
      "In-context examples of the drawn prompt, one or several numbers (4)");
  add_integers(
      app, "--side", {28, 4096}, [&options](std::vector<int64_t> n) { options.sides = std::move(n); },
      "Pixels along a side of the drawn pictures (336)");
  add_integers(
      app, "--requests", {1, 1024}, [&options](std::vector<int64_t> n) { options.requests = std::move(n); },
      "Requests at once, all of the same prompt (1)");
  add_integers(
      app, "--new-tokens", {1, 4096}, [&options](std::vector<int64_t> n) { options.new_tokens = std::move(n); },
      "Tokens to generate (8)");
}

void add_precision(CLI::App& app, Options& options) {
  constexpr int64_t kMostRuns = 1000;
  add_integer(
      app, "--repeat", {1, kMostRuns}, [&options](int64_t n) { options.plan.repeat = static_cast<int>(n); },
      "Counted runs of each policy at least, after one that warms up (5)");
  add_integer(
      app, "--max-repeat", {1, kMostRuns}, [&options](int64_t n) { options.max_repeat = static_cast<int>(n); },
      "Runs at most, while --max-noise is not reached (3 times --repeat)");
  add_real(
      app, "--max-noise", {.high = 1}, [&options](double x) { options.plan.max_noise = x; },
      "Enough is known when half the 95 % interval of each median is this part of it or less (0.05)");
}

}  // namespace

Run add_bench(CLI::App& app) {
  const auto options = std::make_shared<Options>();
  add_model_options(app, options->model);
  app.add_option(
         "--policy", options->policies,
         "Policy to compare; may be given several times, the first is what speed-ups refer to. all: every policy "
         "that the model runs, unpruned first, at 2/9 or with its own schedule (none, and catp, fastv and random "
         "at 2/9)")
      ->allow_extra_args(false)
      ->type_name("SPEC");
  add_plugin_option(app, options->prompt.plugins);
  add_prompt_options(app, options->prompt);
  add_axes(app, *options);
  add_precision(app, *options);
  options->json.add_option(app, "one line per policy and setting");
  app.add_option(
         "--markdown", options->markdown,
         "Also write a table to this file: tokens by layer, FLOPs, time to first token and of selection, KV bytes")
      ->type_name("FILE");
  app.footer(
      "Without a prompt of your own, in-context questions about drawn pictures are asked. Options that take several\n"
      "numbers (N,...) are axes: every combination is measured. Ctrl-C ends it with what is finished.\n\n" +
      bench_legend() +
      "\n"
      "  espalier bench --model llava-1.5-7b-hf --shots 1,4,16 \\\n"
      "      --policy none --policy catp:keep_ratio=2/9\n"
      "  espalier bench --image cat.jpg --prompt \"What is on the sofa?\" \\\n"
      "      --requests 1,8 --new-tokens 64 --json b.jsonl\n"
      "  espalier bench --policy all --markdown costs.md");
  return [options] { return bench(*options); };
}

}  // namespace espalier::cli
